// The push sessions: how they begin, what follows their end, and what is remembered of the last ones.

import { Busy, CheckpointInconsistent, messageOf } from '../base/errors.ts'
import type { Emit } from '../base/events.ts'
import type { Log } from '../base/log.ts'
import { patiently } from '../base/patience.ts'
import { timeName } from '../base/time.ts'
import type { Turns } from '../base/turns.ts'
import type { DirtyBitmap } from '../bitmaps/dirty-bitmap.ts'
import { READER, type Graph } from '../block/graph.ts'
import type { Scratch } from '../block/scratch.ts'
import { estimate, type DiskEstimate } from '../push/estimate.ts'
import { openPlace, openRepository, settingsOf } from '../push/open-place.ts'
import { PushMemory } from '../push/push-memory.ts'
import { SharedSealers } from '../repository/shared-sealers.ts'
import type { PushDisk } from '../push/push.ts'
import type { RepositorySettings } from '../settings/settings.ts'
import { Freeze } from '../transactions/freeze.ts'
import type { Checkpoints } from './checkpoints.ts'
import { CollectChanges } from './collect-changes.ts'
import { takeInstant, type InstantDisk } from './instant.ts'
import type { Machine } from './machine.ts'
import { pointName, PushSession } from './push-session.ts'

export interface PushesContext {
  readonly graph: Graph
  readonly scratch: Scratch
  readonly emit: Emit
  readonly turns: Turns
  readonly log: Log
  readonly repositories: Readonly<Record<string, RepositorySettings>>
  /** For what a session that is stopped reads. */
  readonly patienceMs?: number
}

const PATIENCE_MS = 30_000

export interface BeginPush {
  readonly name: string
  readonly machine: Machine
  readonly checkpoints: Checkpoints
  readonly repository: string
  /** `auto`: the newest checkpoint whose restore point the repository has; `full`: read everything; or the name of a checkpoint. */
  readonly since: string
  /** Bytes a second; 0: no limit. */
  readonly speed?: number | undefined
  readonly description?: string | undefined
  /** True: freeze the guest, or make none; false: do not; undefined: as the configuration says. */
  readonly quiesce?: boolean | undefined
}

export type EstimatePush = Pick<BeginPush, 'machine' | 'checkpoints' | 'repository' | 'since'>

/** As its checkpoints begin. */
const prefixOf = (repository: string) => `push-${repository}-`
/** The repository that a checkpoint was made for by a push; one may begin as another does. */
const repositoryOf = (checkpoint: string) => /^push-(.+)-\d{8}T\d{6}Z(-\d+)?$/.exec(checkpoint)?.[1]

export class Pushes implements AsyncDisposable {
  /** By name; those that have ended stay until the next one of the same machine to the same repository begins. */
  readonly #sessions = new Map<string, PushSession>()
  readonly #shared = { memory: new PushMemory(), sealers: new SharedSealers() }

  constructor(private readonly context: PushesContext) {}

  [Symbol.iterator](): Iterator<PushSession> {
    return this.#sessions.values()
  }

  find(name: string): PushSession | undefined {
    return this.#sessions.get(name)
  }

  /** One instant over all disks; the rest goes on by itself. */
  async begin({
    name,
    machine,
    checkpoints,
    repository: wanted,
    since,
    description,
    quiesce,
    speed = 0,
  }: BeginPush): Promise<PushSession> {
    const { graph, scratch, log, emit } = this.context
    const settings = settingsOf(wanted, this.context.repositories)
    const before = [...this].filter(({ parts }) => parts.machine === machine && parts.repository.name === wanted)
    const running = before.find(({ concluded }) => !concluded)
    if (running)
      throw new Busy(
        `machine '${machine.name}' is being pushed to '${wanted}' already, by session '${running.name}'; wait for it, or abort it`,
      )
    await checkpoints.finishLeft()
    const checkpoint = this.#newName(checkpoints, wanted)
    const disks = machine.disks.map(disk => {
      const freeze = new Freeze(graph, disk.node, scratch)
      return { disk, freeze, ...changesOf(disk, freeze, checkpoints, candidates(checkpoints, since)) }
    })
    const instant: InstantDisk[] = disks.map(({ disk, freeze, collected }) => ({
      disk,
      freeze,
      changes: collected.map(({ changes }) => changes),
    }))
    const quiescing = { operation: { kind: 'push', name, repository: wanted }, wanted: quiesce } as const
    const taken = await takeInstant({ graph, machine, checkpoints, disks: instant, checkpoint, description, quiescing })
    const { time, consistency } = taken
    taken.undo.move()
    const session = new PushSession({
      name,
      machine,
      checkpoints,
      checkpoint,
      time,
      consistency,
      repository: { name: wanted, settings },
      disks: disks.map(({ disk, freeze, collected, missing }) => ({ disk, freeze, changes: offered(collected, missing) })),
      graph,
      log,
      shared: this.#shared,
      speed,
    })
    for (const { name } of before) this.#sessions.delete(name)
    this.#sessions.set(name, session)
    emit('BACKUP_BEGUN', { machine: machine.name, session: name })
    void session.pushed
      .then(() => this.context.turns.take(() => this.#conclude(session)))
      .catch((error: unknown) => log.error('the end of a push could not be seen to', { session: name, err: error }))
    return session
  }

  /** What a push would read and store, were it begun now. */
  async estimate({ machine, checkpoints, repository: wanted, since }: EstimatePush): Promise<DiskEstimate[]> {
    const { graph, log } = this.context
    const settings = settingsOf(wanted, this.context.repositories)
    await using edges = new AsyncDisposableStack()
    const disks = machine.disks.map(disk => {
      const source = graph.attach(disk.node, { description: 'an estimate', ...READER })
      edges.defer(() => graph.detach(source))
      const names = candidates(checkpoints, since)
      return { name: disk.name, source, changes: changesNow(disk, checkpoints, names) }
    })
    await using place = await openPlace(wanted, settings, log)
    return await estimate(await openRepository(place), machine.name, disks)
  }

  /** Ends one that runs, or forgets one that has ended. In a turn. @throws Busy where it ends later, by itself, as a disk hangs */
  async abort(session: PushSession) {
    if (session.concluded) return void this.#sessions.delete(session.name)
    session.stop()
    await patiently(this.context.patienceMs ?? PATIENCE_MS, session.pushed, seconds => {
      const { name } = session
      return new Busy(
        `session '${name}' is stopped, but what it reads has not been answered for ${seconds} s; it ends when the disk below, or the repository, answers`,
      )
    })
    await this.#conclude(session)
  }

  /** The daemon stops: what is not committed is not. */
  async [Symbol.asyncDispose]() {
    for (const session of this) {
      if (session.concluded) continue
      session.stop(new Busy('the daemon stopped'))
      await session.pushed
      await this.#conclude(session)
    }
  }

  /** In a turn. The views go, and either the new checkpoint or those that it replaces. */
  async #conclude(session: PushSession) {
    if (session.concluded) return
    session.concluded = true
    const { log, emit } = this.context
    const { name, machine, checkpoint, checkpoints, repository, disks, consistency } = session.parts
    const { result, error } = session
    const told = { machine: machine.name, session: name }
    // All at once, as one that hangs takes its time, and goes when its disk answers.
    const views = disks.map(async ({ disk, freeze }) => {
      freeze.onBroken = () => undefined
      await freeze[Symbol.asyncDispose]().catch((failure: unknown) =>
        log.warn('a view of a push could not be taken away yet', { ...told, disk: disk.name, err: failure }),
      )
    })
    await Promise.all(views)
    const ours = checkpoints.list.filter(one => repositoryOf(one.name) === repository.name)
    const gone = ours.filter(one => (result ? one.name !== checkpoint : one.name === checkpoint))
    for (const one of gone) {
      try {
        await checkpoints.delete(one.name)
      } catch (failure) {
        // It does no harm: no restore point is of it, or an older one than the last.
        log.warn('a checkpoint of a push could not be taken away', { ...told, checkpoint: one.name, err: failure })
      }
    }
    machine.guest.ended(
      { kind: 'push', name, repository: repository.name },
      result
        ? { result: 'done', consistency, checkpoint, point: pointName(result) }
        : { result: 'failed', consistency, reason: messageOf(error) },
    )
    if (!result) {
      log.error('a push has failed; the last restore point, and its checkpoint, are as they were', { ...told, err: error })
      return emit('BACKUP_ABORTED', { ...told, reason: messageOf(error) })
    }
    for (const { disk, checkpoint: since, why } of result.broken)
      log.error('a bitmap did not tell the truth, and the disk was compared instead', { ...told, disk, checkpoint: since, why })
    if (result.unfinished !== undefined)
      log.warn('a push has left something to the next one', { ...told, reason: result.unfinished })
    log.info('a push has ended', { ...told, repository: repository.name, point: result.key })
    emit('BACKUP_FINISHED', told)
  }

  /** Two in one second get names of their own. */
  #newName(checkpoints: Checkpoints, repository: string) {
    const name = `${prefixOf(repository)}${timeName()}`
    const taken = new Set(checkpoints.list.map(one => one.name))
    for (let count = 2; ; count++) {
      const next = taken.has(name) ? `${name}-${count}` : name
      if (!taken.has(next)) return next
    }
  }
}

/** The checkpoints from which it may be known what changed, newest first; or why none is wanted. */
function candidates(checkpoints: Checkpoints, since: string): readonly string[] | string {
  if (since === 'full') return 'a full read was asked for'
  if (since !== 'auto') return [checkpoints.get(since).name]
  // Also of pushes to others: this one may have a copy of what is there.
  const names = checkpoints.list.map(({ name }) => name).filter(name => repositoryOf(name) !== undefined)
  return names.length > 0 ? names.toReversed() : 'there is no checkpoint of an earlier push'
}

interface Collected {
  readonly since: string
  readonly changes: CollectChanges
}

/** The same as the next, of this moment: bitmaps that record go on. */
function changesNow(disk: Machine['disks'][number], checkpoints: Checkpoints, names: readonly string[] | string) {
  if (typeof names === 'string') return { missing: names }
  const { found, missing } = knownChanges(disk, checkpoints, names)
  if (found.length === 0) return { missing: missing ?? 'there is no bitmap' }
  return found.map(({ since, bitmaps }) => {
    const [first, ...others] = bitmaps
    const bitmap = first!.copy()
    for (const other of others) bitmap.mergeFrom(other)
    return { since, bitmap }
  })
}

function changesOf(disk: Machine['disks'][number], freeze: Freeze, checkpoints: Checkpoints, names: readonly string[] | string) {
  if (typeof names === 'string') return { collected: [], missing: names }
  const { found, missing } = knownChanges(disk, checkpoints, names)
  const collected = found.map(({ since, bitmaps }): Collected => ({
    since,
    changes: new CollectChanges(() => freeze.view, `since-${since}`, bitmaps),
  }))
  return { collected, missing }
}

/** The bitmaps since each checkpoint; what keeps one from being known, if that is all. */
function knownChanges(disk: Machine['disks'][number], checkpoints: Checkpoints, names: readonly string[]) {
  const found: { readonly since: string; readonly bitmaps: readonly DirtyBitmap[] }[] = []
  let missing: string | undefined
  for (const since of names) {
    try {
      const bitmaps = checkpoints.changesSince(since, disk)
      if (bitmaps) found.push({ since, bitmaps })
      else missing ??= `checkpoint '${since}' does not know this disk`
    } catch (error) {
      // A bitmap only saves reading: without it the disk is compared, and the restore point says why.
      if (!(error instanceof CheckpointInconsistent)) throw error
      missing ??= error.message
    }
  }
  return { found, missing }
}

function offered(collected: readonly Collected[], missing: string | undefined): PushDisk['changes'] {
  if (collected.length === 0) return { missing: missing ?? 'there is no bitmap' }
  return collected.map(({ since, changes }) => ({ since, bitmap: changes.bitmap! }))
}
