// What a schedule does to a machine: a push into a repository, or a view that a backup program comes and reads; and what follows.

import { Cancelled, InvalidParameter } from '../base/errors.ts'
import { formatSize } from '../base/units.ts'
import type { Log } from '../base/log.ts'
import { timeName } from '../base/time.ts'
import type { Turns } from '../base/turns.ts'
import type { Backups } from '../machines/backups.ts'
import type { Checkpoints } from '../machines/checkpoints.ts'
import type { DiskJobs } from '../machines/disk-jobs.ts'
import type { Machines } from '../machines/machines.ts'
import { operate } from '../machines/quiesce/operate.ts'
import { openPlace, openRepository } from '../push/open-place.ts'
import { collect } from '../repository/collector.ts'
import { prune } from '../repository/prune.ts'
import type { RepositorySettings, ScheduleSettings } from '../settings/settings.ts'
import type { Backed, Worker } from './scheduler.ts'

export interface BackupWorkerContext {
  readonly turns: Turns
  readonly log: Log
  readonly machines: Machines
  readonly backups: Backups
  readonly diskJobs: DiskJobs
  readonly repositories: Readonly<Record<string, RepositorySettings>>
}

/** As `stillpoint repo gc` has it: how long what nobody needs stays, for those who have just begun to need it. */
const GRACE_MS = 24 * 3_600_000

export class BackupWorker implements Worker {
  constructor(private readonly context: BackupWorkerContext) {}

  backUp(schedule: ScheduleSettings, machine: string, options: { windowMs: number | undefined; signal: AbortSignal }) {
    return schedule.mode === 'push' ? this.#push(schedule, machine, options.signal) : this.#pull(schedule, machine, options)
  }

  async #push({ name, repository }: ScheduleSettings, wanted: string, signal: AbortSignal): Promise<Backed> {
    const { turns, backups } = this.context
    if (repository === undefined) throw new InvalidParameter(`schedule '${name}' names no repository to push to`)
    const { machine, checkpoints } = this.#find(wanted)
    const session = await operate({
      turns,
      machine,
      operation: { kind: 'push', repository },
      quiesce: undefined,
      work: () => {
        this.#find(wanted)
        return backups.beginPush({ machine, checkpoints, repository, since: 'auto', description: `schedule '${name}'` })
      },
    })
    const stop = () => session.stop(signal.reason as Error)
    signal.addEventListener('abort', stop)
    if (signal.aborted) stop()
    await session.pushed
    signal.removeEventListener('abort', stop)
    // Its end is seen to in a turn that was asked for before this one.
    await turns.take(() => undefined)
    const { status, point, reason } = session.info()
    if (status !== 'finished') throw session.error
    return { session: session.name, point, warning: reason }
  }

  /** Done when whoever reads it says so. The view has the same name each time, so that programs find it. */
  async #pull(
    { name, windowMs }: ScheduleSettings,
    wanted: string,
    { windowMs: left, signal }: { readonly windowMs: number | undefined; readonly signal: AbortSignal },
  ): Promise<Backed> {
    const { turns, backups, log } = this.context
    const prefix = `${name}-`
    const checkpoint = `${prefix}${timeName()}`
    const { machine, checkpoints } = this.#find(wanted)
    const { session, ended } = await operate({
      turns,
      machine,
      operation: { kind: 'pull', name: `${name}-${wanted}` },
      quiesce: undefined,
      work: async () => {
        this.#find(wanted)
        const begun = await backups.beginPull({
          machine,
          checkpoints,
          name: `${name}-${wanted}`,
          since: newestUsable(checkpoints, prefix),
          checkpoint,
          description: `schedule '${name}'`,
          expireMs: left ?? windowMs,
        })
        return { session: begun, ended: backups.endOf(begun) }
      },
    })
    const stop = () => {
      turns
        .take(() => backups.abortIfOpen(session, 'the daemon stopped'))
        .catch((error: unknown) => log.error('a session could not be ended', { session: session.name, err: error }))
    }
    signal.addEventListener('abort', stop)
    if (signal.aborted) stop()
    const reason = await ended
    signal.removeEventListener('abort', stop)
    if (reason !== undefined) throw new Cancelled(`the session was not finished by whoever reads it: ${reason}`)
    await turns.take(async () => {
      const older = checkpoints.list.filter(one => one.name.startsWith(prefix) && one.name !== checkpoint)
      for (const one of older) await checkpoints.delete(one.name)
    })
    return { session: session.name }
  }

  /** What no rule keeps is forgotten, and what only that needed collected, as far as it may be by now. */
  async retain({ repository: name, keep }: ScheduleSettings, machines: readonly string[], signal: AbortSignal) {
    const settings = name === undefined ? undefined : this.context.repositories[name]
    if (name === undefined || keep === undefined || settings === undefined) return undefined
    await using place = await openPlace(name, settings, this.context.log, signal)
    const repository = await openRepository(place, signal)
    const decisions = []
    for (const machine of machines) decisions.push(...(await prune(repository, machine, keep, { signal })))
    const kept = decisions.filter(decision => decision.keep).length
    const { state, packs, bytes } = await collect(repository, { graceMs: GRACE_MS, signal })
    const collected = state === 'deleted' ? `; ${packs} ${packs === 1 ? 'pack' : 'packs'} with ${formatSize(bytes)} deleted` : ''
    return `${kept} restore ${kept === 1 ? 'point' : 'points'} kept, ${decisions.length - kept} forgotten${collected}`
  }

  /** @throws NotFound, BlockCopyActive */
  #find(name: string) {
    const found = this.context.machines.get(name)
    for (const disk of found.machine.disks) this.context.diskJobs.checkCopy(found.machine, disk)
    return found
  }
}

/** Never one of a session that nobody has read to its end, even where it could not be taken back. */
const newestUsable = (checkpoints: Checkpoints, prefix: string) =>
  checkpoints.list.findLast(
    ({ name }) => name.startsWith(prefix) && checkpoints.isKept(name) && checkpoints.problemOf(name) === undefined,
  )?.name
