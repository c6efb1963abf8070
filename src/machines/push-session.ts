// A push session: the frozen views of a machine's disks at one instant, on their way into a repository.
//
// It ends by itself, or is aborted. Its checkpoint stays when the restore point is committed, and never otherwise: so the last one that
// stays is always one whose restore point is there.

import { Cancelled, faultIn, messageOf } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import { SpeedLimit } from '../base/speed-limit.ts'
import type { Graph } from '../block/graph.ts'
import { openPlace, openRepository } from '../push/open-place.ts'
import type { PushMemory } from '../push/push-memory.ts'
import type { SharedSealers } from '../repository/shared-sealers.ts'
import { push, type PushDisk, type PushProgress, type PushResult } from '../push/push.ts'
import type { RepositorySettings } from '../settings/settings.ts'
import type { Freeze } from '../transactions/freeze.ts'
import type { Checkpoints } from './checkpoints.ts'
import type { Disk, Machine } from './machine.ts'
import type { Consistency } from './quiesce/guest.ts'

export interface PushedDisk {
  readonly disk: Disk
  readonly freeze: Freeze
  readonly changes: PushDisk['changes']
}

export interface PushParts {
  readonly name: string
  readonly machine: Machine
  readonly checkpoints: Checkpoints
  readonly checkpoint: string
  /** The instant. */
  readonly time: Date
  readonly consistency: Consistency
  readonly repository: { readonly name: string; readonly settings: RepositorySettings }
  readonly disks: readonly PushedDisk[]
  readonly graph: Graph
  readonly shared: SharedByPushes
  /** Bytes a second that are read; 0: as fast as it goes. */
  readonly speed: number
  readonly log: Log
}

/** What all pushes of a daemon have in common. */
export interface SharedByPushes {
  readonly memory: PushMemory
  readonly sealers: SharedSealers
}

const NONE: PushProgress = { disk: '', done: 0, total: 0, read: 0, dirty: 0, new: 0, stored: 0 }

/** As people and commands name it. */
export const pointName = ({ key }: PushResult) => key.replace(/^points\//, '')

export class PushSession {
  readonly mode = 'push' as const
  readonly #stop = new AbortController()
  readonly #begun = performance.now()
  #ended: { readonly at: number; readonly result?: PushResult; readonly error?: unknown } | undefined
  #progress = NONE
  /** Done when the repository has the restore point or never will. Never rejects. */
  readonly pushed: Promise<void>
  /** The views are gone, and what it came to is seen to. */
  concluded = false

  constructor(readonly parts: PushParts) {
    for (const { freeze } of parts.disks) {
      freeze.onBroken = error => this.stop(error)
      if (freeze.broken) this.stop(freeze.broken) // as early as that
    }
    this.pushed = this.#run().then(
      result => void (this.#ended = { at: performance.now(), result }),
      (error: unknown) => void (this.#ended = { at: performance.now(), error: this.#reasonOf(error) }),
    )
  }

  get name() {
    return this.parts.name
  }

  /** The restore point, once it is there. */
  get result() {
    return this.#ended?.result
  }

  /** Why there is no restore point, once there will be none. */
  get error() {
    return this.#ended?.error
  }

  /** When the repository had it, or was never going to, by the time of day as it is now. */
  get ended(): Date | undefined {
    return this.#ended && new Date(Date.now() - (performance.now() - this.#ended.at))
  }

  stop(reason: Error = new Cancelled('aborted by the user')) {
    this.#stop.abort(reason)
  }

  /** In the shape of `query-backups`; sizes are bytes. */
  info() {
    const { name, machine, checkpoint, time, consistency, disks, repository } = this.parts
    const { done, total, read, stored, new: fresh } = this.#progress
    const { result } = this
    const { exitCode = 1 } = faultIn(this.error) ?? {}
    const ms = Math.max(1, (this.#ended?.at ?? performance.now()) - this.#begun)
    return {
      name,
      machine: machine.name,
      mode: this.mode,
      status: !this.#ended || !this.concluded ? ('running' as const) : result ? ('finished' as const) : ('failed' as const),
      ...(this.concluded && !result && { reason: messageOf(this.error), ...(exitCode !== 1 && { 'exit-code': exitCode }) }),
      ...(this.concluded && result?.unfinished !== undefined && { reason: result.unfinished }),
      repository: repository.name,
      ...(result && { point: pointName(result) }),
      checkpoint,
      time: time.toISOString(),
      consistency,
      progress: {
        done,
        total,
        read,
        new: fresh,
        stored,
        rate: Math.round((done / ms) * 1000),
        ...(!this.#ended && done > 0 && { 'seconds-left': Math.ceil(((total - done) * ms) / done / 1000) }),
      },
      disks: disks.map(({ disk }) => {
        const pushed = result?.manifest.disks.find(({ name }) => name === disk.name)
        return {
          disk: disk.name,
          size: pushed?.size ?? disk.node.size,
          ...(pushed && { read: pushed.read.mode, why: pushed.read.why, changed: pushed.dirty, stored: pushed.stored }),
        }
      }),
    }
  }

  async #run(): Promise<PushResult> {
    const { machine, time, consistency, disks, checkpoint, repository: wanted, graph, log, shared, speed } = this.parts
    const { memory, sealers } = shared
    const { signal } = this.#stop
    signal.throwIfAborted()
    // Not before the instant, for which guests wait; they take as long to start as all that comes before the first byte.
    await using _threads = sealers.wake()
    await using edges = new AsyncDisposableStack()
    const sources = disks.map(({ disk, freeze, changes }): PushDisk => {
      const { source, release } = freeze.read(`backup session '${this.name}'`)
      edges.defer(() => graph.detach(source))
      return { name: disk.name, source, changes, checkpoint, release }
    })
    await using place = await openPlace(wanted.name, wanted.settings, log, signal)
    const repository = await openRepository(place, signal)
    using share = await memory.take()
    const { memory: bytes, packSize } = share
    const work = push({
      repository,
      machine: machine.name,
      time,
      consistency,
      disks: sources,
      memory: bytes,
      packSize,
      sealers,
      ...(speed > 0 && { speed: new SpeedLimit(speed) }),
      signal,
    })
    let step = await work.next()
    for (; !step.done; step = await work.next()) this.#progress = step.value
    return step.value
  }

  /** Whatever failed because it was stopped: the reason is why it was. */
  #reasonOf(error: unknown) {
    const reason = this.#stop.signal.aborted ? (this.#stop.signal.reason as unknown) : error
    return faultIn(reason) ?? reason
  }
}
