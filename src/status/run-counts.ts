// How often schedules have ended, and how, since the daemon was started.

import type { Run } from '../scheduler/schedule-state.ts'
import type { Sample } from './exposition.ts'

/** Told from the beginning, so that what happens first is seen as a change. */
const OUTCOMES = ['done', 'warning', 'partly', 'failed'] as const

export class RunCounts {
  readonly #counts = new Map<string, Map<string, number>>()

  constructor(private readonly names: () => readonly string[]) {}

  ended(schedule: string, { outcome }: Run) {
    if (outcome === undefined) return
    const counts = this.#counts.get(schedule) ?? new Map<string, number>()
    this.#counts.set(schedule, counts.set(outcome, (counts.get(outcome) ?? 0) + 1))
  }

  get samples(): Sample[] {
    return this.names().flatMap(schedule =>
      OUTCOMES.map((outcome): Sample => [{ schedule, outcome }, this.#counts.get(schedule)?.get(outcome) ?? 0]),
    )
  }
}
