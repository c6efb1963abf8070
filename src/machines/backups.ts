// The backup sessions that are open, over all machines: how they begin at one instant, and how they end.

import { setTimeout, clearTimeout } from 'node:timers'
import { Busy, InvalidParameter, NotFound } from '../base/errors.ts'
import { timeName } from '../base/time.ts'
import type { DiskEstimate } from '../push/estimate.ts'
import { Exports } from '../nbd-server/exports.ts'
import type { NodeExport, NodeExports } from '../nbd-server/node-exports.ts'
import { NbdServer } from '../nbd-server/server.ts'
import { Freeze } from '../transactions/freeze.ts'
import type { Checkpoints } from './checkpoints.ts'
import { CollectChanges } from './collect-changes.ts'
import { takeInstant } from './instant.ts'
import type { Machine } from './machine.ts'
import { PullSession } from './pull-session.ts'
import type { Outcome } from './quiesce/guest.ts'
import { PushSession } from './push-session.ts'
import { Pushes, type BeginPush, type EstimatePush, type PushesContext } from './pushes.ts'

export interface BackupsContext extends PushesContext {
  readonly exports: Exports
  readonly nodeExports: NodeExports
  readonly expireMs: number
}

export interface PushOptions extends Omit<BeginPush, 'name'> {
  /** Default: the machine's name, the repository's and the time. */
  readonly name?: string | undefined
}

export interface PullOptions {
  readonly machine: Machine
  readonly checkpoints: Checkpoints
  /** Default: the machine's name and the time. */
  readonly name?: string | undefined
  /** Offer what changed since this checkpoint. */
  readonly since?: string | undefined
  /** Make the instant a checkpoint. */
  readonly checkpoint?: string | undefined
  readonly description?: string | undefined
  /** A unix socket for this session alone, whose exports are called as the disks. */
  readonly socket?: string | undefined
  readonly expireMs?: number | undefined
  /** True: freeze the guest, or make none; false: do not; undefined: as the configuration says. */
  readonly quiesce?: boolean | undefined
}

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/

export class Backups implements AsyncDisposable {
  readonly #sessions = new Map<string, PullSession>()
  readonly #timers = new Map<string, NodeJS.Timeout>()
  readonly #ends = new Map<PullSession, PromiseWithResolvers<string | undefined>>()

  private readonly pushes: Pushes

  constructor(private readonly context: BackupsContext) {
    this.pushes = new Pushes(context)
  }

  /** One instant over all disks, which is read into a repository while the guests go on. */
  async beginPush({ name: wanted, ...options }: PushOptions): Promise<PushSession> {
    const name = wanted ?? `${options.machine.name}-${options.repository}-${timeName()}`
    this.#checkNewName(name)
    return this.pushes.begin({ name, ...options })
  }

  estimatePush(wanted: EstimatePush): Promise<DiskEstimate[]> {
    return this.pushes.estimate(wanted)
  }

  *[Symbol.iterator](): Iterator<PullSession | PushSession> {
    yield* this.#sessions.values()
    yield* this.pushes
  }

  /** @throws NotFound */
  get(name: string): PullSession | PushSession {
    const session = this.#sessions.get(name) ?? this.pushes.find(name)
    if (!session)
      throw new NotFound(
        `there is no backup session '${name}'; 'stillpoint backup list' shows those that are open, and a restart of the daemon ends them`,
      )
    return session
  }

  /** @throws Busy while a session of the machine is open */
  checkNone(machine: Machine) {
    for (const session of this) {
      if (session.parts.machine !== machine || (session instanceof PushSession && session.concluded)) continue
      throw new Busy(`backup session '${session.name}' of machine '${machine.name}' is open; finish or abort it first`)
    }
  }

  /** One instant over all disks: frozen views, what changed since, and the checkpoint if one was asked for; or nothing of it. */
  async beginPull(options: PullOptions): Promise<PullSession> {
    const { machine, checkpoints, since, checkpoint, description, socket, expireMs = this.context.expireMs } = options
    const { graph, scratch, log } = this.context
    const name = options.name ?? `${machine.name}-${timeName()}`
    this.#checkName(name, options)
    await checkpoints.finishLeft()
    const disks = machine.disks.map(disk => {
      const freeze = new Freeze(graph, disk.node, scratch)
      const changes =
        since === undefined
          ? undefined
          : new CollectChanges(() => freeze.view, `backup-${disk.name}`, checkpoints.changesSince(since, disk))
      return { disk, freeze, changes }
    })
    const instant = disks.map(({ disk, freeze, changes }) => ({ disk, freeze, changes: changes ? [changes] : [] }))
    const quiescing = { operation: { kind: 'pull', name }, wanted: options.quiesce } as const
    const taken = await takeInstant({
      graph,
      machine,
      checkpoints,
      disks: instant,
      checkpoint,
      open: true,
      description,
      quiescing,
    })
    const { time, consistency } = taken
    await using undo = taken.undo
    const exports = socket === undefined ? this.context.exports : new Exports()
    const exported: NodeExport[] = []
    for (const { disk, freeze, changes } of disks) {
      const made = await this.context.nodeExports.add(exports, {
        id: `${name}/${disk.name}`,
        name: socket === undefined ? `${name}/${disk.name}` : disk.name,
        description: `${machine.name}/${disk.name} as it was at ${time.toISOString()}`,
        node: freeze.view,
        keeper: `backup session '${name}'`,
        bitmaps: changes?.bitmap ? [{ name: changes.bitmap.name!, bitmap: changes.bitmap }] : [],
      })
      undo.defer(() => made.remove('hard'))
      exported.push(made)
    }
    const server =
      socket === undefined ? undefined : undo.use(await NbdServer.listen({ unix: socket, mode: 0o660 }, { exports, log }))
    const session = new PullSession({
      name,
      machine,
      checkpoints,
      since,
      checkpoint,
      time,
      consistency,
      expires: new Date(Date.now() + expireMs),
      disks: disks.map((disk, index) => ({ ...disk, export: exported[index]! })),
      ...(server && { socket: { path: socket!, server } }),
    })
    undo.move()
    for (const { disk, freeze } of disks) {
      freeze.onBroken = error => this.#broken(session, disk.name, error)
      if (freeze.broken) this.#broken(session, disk.name, freeze.broken) // as early as that
    }
    this.#sessions.set(name, session)
    this.#timers.set(
      name,
      setTimeout(() => this.#expire(session), expireMs),
    )
    this.context.emit('BACKUP_BEGUN', { machine: machine.name, session: name })
    return session
  }

  /** Done when an open session ends: undefined where it was finished, or why not. Never rejects. */
  endOf(session: PullSession): Promise<string | undefined> {
    const end = this.#ends.get(session) ?? Promise.withResolvers<string | undefined>()
    this.#ends.set(session, end)
    return end.promise
  }

  /** In a turn. */
  async abortIfOpen(session: PullSession, reason: string) {
    if (this.#sessions.get(session.name) === session) await this.abort(session.name, reason)
  }

  /** The reader has what it wanted; the session's checkpoint stays. @throws InvalidParameter when the views are lost */
  async finish(name: string) {
    const session = this.get(name)
    if (session instanceof PushSession)
      throw new InvalidParameter(`session '${name}' pushes, and ends by itself; 'stillpoint backup abort ${name}' stops it`)
    if (session.broken)
      throw new InvalidParameter(
        `the backup is not whole: ${session.broken.message}; 'stillpoint backup abort ${name}' ends the session`,
      )
    const { checkpoints, checkpoint } = session.parts
    if (checkpoint !== undefined) await checkpoints.keep(checkpoint)
    await this.#end(session, 'BACKUP_FINISHED', { result: 'done' })
  }

  /** What was read of it is not to be used; the checkpoint that came with it is taken back. */
  async abort(name: string, reason = 'aborted by the user') {
    const session = this.get(name)
    if (session instanceof PushSession) return this.pushes.abort(session)
    const { checkpoints, checkpoint } = session.parts
    // Also where a disk that hangs keeps its view: nobody is to begin an increment from it.
    await using undo = new AsyncDisposableStack()
    undo.defer(async () => {
      if (checkpoint !== undefined && checkpoints.list.some(({ name }) => name === checkpoint))
        await checkpoints.delete(checkpoint)
    })
    await this.#end(session, 'BACKUP_ABORTED', { result: 'failed', reason })
  }

  /** The daemon stops: nobody can read on. */
  async [Symbol.asyncDispose]() {
    // One that fails keeps none of the others.
    await using all = new AsyncDisposableStack()
    for (const { name } of this.#sessions.values()) all.defer(() => this.abort(name, 'the daemon stopped'))
    all.use(this.pushes)
  }

  async #end(session: PullSession, event: string, outcome: Outcome) {
    clearTimeout(this.#timers.get(session.name))
    this.#timers.delete(session.name)
    this.#sessions.delete(session.name)
    try {
      await session[Symbol.asyncDispose]()
    } finally {
      // It has ended, whatever of it a disk that hangs keeps for a while.
      const { machine, consistency, checkpoint } = session.parts
      const { reason } = outcome
      this.context.emit(event, { machine: machine.name, session: session.name, ...(reason !== undefined && { reason }) })
      machine.guest.ended({ kind: 'pull', name: session.name }, { ...outcome, consistency, checkpoint })
      this.#ends.get(session)?.resolve(reason)
      this.#ends.delete(session)
    }
  }

  #broken(session: PullSession, disk: string, error: Error) {
    const { machine } = session.parts
    this.context.log.error('a backup session is broken, and the guest goes on', { session: session.name, disk, err: error })
    this.context.emit('BACKUP_BROKEN', { machine: machine.name, session: session.name, disk, reason: error.message })
  }

  #expire(session: PullSession) {
    const { log, turns } = this.context
    turns
      .take(async () => {
        if (this.#sessions.get(session.name) !== session) return
        log.warn('a backup session that nobody ended has expired', { session: session.name })
        await this.abort(session.name, 'expired')
      })
      .catch((error: unknown) => log.error('an expired backup session could not be ended', { session: session.name, err: error }))
  }

  #checkNewName(name: string) {
    if (!NAME.test(name))
      throw new InvalidParameter(
        `'${name}' cannot be the name of a session: it may have up to 128 letters, digits, '.', '_' and '-', and begins with a letter or digit`,
      )
    if (this.#sessions.has(name) || this.pushes.find(name)?.concluded === false)
      throw new InvalidParameter(`there is a backup session '${name}' already; finish or abort it, or choose another name`)
  }

  #checkName(name: string, { machine, socket }: PullOptions) {
    this.#checkNewName(name)
    const taken = machine.disks.map(disk => `${name}/${disk.name}`).find(wanted => this.context.exports.find(wanted))
    if (taken !== undefined && socket === undefined)
      throw new InvalidParameter(`there is an export '${taken}' already; choose another name for the session`)
  }
}
