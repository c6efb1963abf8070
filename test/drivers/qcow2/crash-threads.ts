// Plays the scenarios of crash-scenarios.ts in threads, and makes tests of them. STILLPOINT_SEED=n tries others, or the ones of a failure again.

import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import pLimit from 'p-limit'
import t from 'tap'
import { missing, qemuCheck, scratchFolder } from '../../helpers/qemu.ts'
import { seed } from '../../helpers/seed.ts'
import type { Outcome, scenarios } from './crash-scenarios.ts'

/** As many threads as work at a time. */
const limit = pLimit(2)

/** So many of the images go to qemu-img too. */
const SAMPLES = 16

interface Part {
  readonly scenario: keyof typeof scenarios
  /** For each of the threads. */
  readonly runs: readonly number[]
  /** The sentence behind "after a power cut". */
  readonly what: string
}

/** A test for each, and one that there were `least` power cuts in all. */
export function afterPowerCuts(parts: readonly Part[], least: number) {
  const played = parts.map(part => ({
    ...part,
    outcomes: Promise.all(part.runs.map((runs, at) => play(part.scenario, runs, seed + at))),
  }))
  for (const { what, outcomes } of played)
    t.test(`after a power cut ${what}`, async t => {
      t.comment(`STILLPOINT_SEED=${seed}`)
      const samples = (await outcomes).flatMap(outcome => outcome.samples).slice(0, SAMPLES)
      t.ok(cutsOf(await outcomes) > 100, `${cutsOf(await outcomes)} power cuts`)
      if (samples.length > 0)
        await t.test('and qemu-img finds no error', { skip: missing('qemu-img') }, async t => {
          await using stack = new AsyncDisposableStack()
          const folder = await scratchFolder(stack)
          for (const [index, bytes] of samples.entries()) writeFileSync(`${folder}/${index}`, bytes)
          const checks = samples.map((_, index) => limit(() => qemuCheck(`${folder}/${index}`)))
          for (const check of await Promise.all(checks)) t.notMatch(check, /ERROR/)
        })
    })

  t.test(`those were ${least} power cuts at least`, async t => {
    const all = await Promise.all(played.map(({ outcomes }) => outcomes))
    t.ok(cutsOf(all.flat()) >= least, `${cutsOf(all.flat())} power cuts`)
  })
}

const play = (scenario: keyof typeof scenarios, runs: number, seed: number): Promise<Outcome> =>
  limit(async () => {
    const worker = new Worker(new URL('./crash-scenarios.js', import.meta.url), { workerData: { scenario, runs, seed } })
    const [outcome] = (await once(worker, 'message')) as [Outcome]
    return outcome
  })

const cutsOf = (outcomes: readonly Outcome[]) => outcomes.reduce((sum, { cuts }) => sum + cuts, 0)
