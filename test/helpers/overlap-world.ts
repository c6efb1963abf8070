// A machine whose whole history is known, and on which several things are under way at the same time: a job on each disk, sessions that are read
// in part, pushes, a transaction of another client. What is refused must be refused for a reason that is there, and documented.

import { truncate, writeFile, readFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { QmpError, type QmpClient, type QmpEvent } from '../../src/control/qmp-client.ts'
import { differenceOf, HistoryWorld, SIZE, soon, type KnownCheckpoint } from './history-world.ts'
import { qemuImg } from './qemu.ts'

export interface Session {
  readonly name: string
  readonly held: ReadonlyMap<string, Buffer>
  readonly since: KnownCheckpoint | undefined
  readonly checkpoint: string | undefined
}

export interface Push {
  readonly name: string
  readonly held: ReadonlyMap<string, Buffer>
}

/** On one disk: a machine's disk job, or one of QMP's own. */
export interface Work {
  readonly id: string
  readonly kind: string
  readonly disk: string
  /** Of QMP's own: nothing tells how it ended, but the event. */
  readonly own: boolean
  /** Of a backup or mirror of QMP's own. */
  readonly target?: { readonly node: string; readonly file: string; readonly format: 'raw' | 'qcow2' } | undefined
  /** Of a backup: what its target holds in the end. */
  held?: Buffer | undefined
  /** Of a copy that waits: what it holds if it is aborted. */
  readonly file?: string | undefined
  /** Those that succeed together with it, or not at all. */
  group?: readonly Work[] | undefined
  /** It waits for a word before it ends. */
  readonly finalized?: boolean | undefined
  paused: boolean
  /** Ended by whom it was begun. */
  aborted: boolean
}

interface Refusal {
  readonly says: RegExp
  /** Whether there is a reason for it. */
  readonly when: (world: OverlapWorld) => boolean
}

/** A job may end at any time, also between the look at it and what is asked of it. */
const always = () => true

/** Each is told in docs/disks.md or docs/control-socket.md, or is what QEMU says to its own commands. */
const refusals: readonly Refusal[] = [
  {
    says: /already has a block job|block device is in use by block job/,
    when: world => world.work.size > 0 || world.transaction !== undefined,
  },
  { says: /^block copy still active/, when: world => world.isMirrored },
  { says: /is read by a backup/, when: world => world.hasView },
  { says: /Need a root block node/, when: world => world.hasView },
  { says: /does not have an active block job/, when: always },
  // A step's node went behind an overlay since, or is to by another step.
  { says: /node is used as backing hd of/, when: world => world.transaction !== undefined },
  // So it is where a job has closed the node since.
  { says: /^Cannot find device=/, when: world => world.transaction !== undefined },
  // Any step's reason, which was told before or came meanwhile.
  { says: /^nothing has happened, because /, when: world => world.transaction !== undefined },
  { says: /cannot accept command verb/, when: always },
  { says: /is no copy, and ends by itself/, when: always },
  { says: /^(Job|Block job)( '.*')? not found/, when: always },
]

export class OverlapWorld extends HistoryWorld {
  readonly refused = new Map<string, number>()
  /** On each disk. */
  readonly work = new Map<string, Work>()
  sessions: Session[] = []
  pushes: Push[] = []
  transaction:
    { readonly client: QmpClient; readonly steps: string[]; readonly backups: Work[]; readonly grouped: boolean } | undefined
  readonly #ended = new Map<string, { readonly error?: string; readonly cancelled: boolean }>()
  #number = 0

  protected override onEvent({ event, data }: QmpEvent) {
    const { device, error } = data as { device?: string; error?: string }
    if (event === 'BLOCK_JOB_COMPLETED') this.#ended.set(device!, { ...(error !== undefined && { error }), cancelled: false })
    else if (event === 'BLOCK_JOB_CANCELLED') this.#ended.set(device!, { cancelled: true })
    else if (event === 'BACKUP_BROKEN') this.done.push(`BACKUP_BROKEN ${JSON.stringify(data)}`)
  }

  get isMirrored() {
    return [...this.work.values()].some(({ kind }) => ['copy', 'active commit', 'mirror'].includes(kind))
  }

  get hasView() {
    const backup = [...this.work.values()].some(({ kind }) => kind === 'backup')
    return backup || this.sessions.length > 0 || this.pushes.length > 0 || this.transaction !== undefined
  }

  name(prefix: string) {
    return `${prefix}${++this.#number}`
  }

  /** Says in the trace what is asked, and what came of it. Guests write meanwhile, unless an instant is to be known. */
  async ask<Result = unknown>(
    command: string,
    args: object,
    { writes = true, by }: { writes?: boolean; by?: QmpClient } = {},
  ): Promise<Result | undefined> {
    const line = this.done.push(`   ${command} ${JSON.stringify(args)} ...`) - 1
    const text = `   ${command} ${JSON.stringify(args).replaceAll(this.folder, '')}`
    const answer = by ? soon(text, by.execute(command, args) as Promise<Result>) : this.execute<Result>(command, args)
    try {
      if (writes) await this.writeUntil(answer)
      const result = await answer
      this.done[line] = text
      return result
    } catch (error) {
      this.done[line] = `${text}: ${(error as Error).message}`
      if (!(error instanceof QmpError)) throw error
      await this.lookAtWork()
      const { desc } = error
      const reason = refusals.find(({ says }) => says.test(desc))
      if (!reason || !reason.when(this)) throw new Error(`${text} was refused: ${desc}`, { cause: error })
      const kind = `${command}: ${desc.replaceAll(this.folder, '').replaceAll(/'[^']*'/g, "'...'")}`
      this.refused.set(kind, (this.refused.get(kind) ?? 0) + 1)
      return undefined
    }
  }

  async writeUntil(answer: Promise<unknown>) {
    let over = false
    const end = () => {
      over = true
    }
    const settled = answer.then(end, end)
    while (!over) await this.write()
    await settled
  }

  async nodeOf(disk: string) {
    const [machine] = await this.execute<[{ disks: { name: string; node: string }[] }]>('query-machines')
    return machine.disks.find(({ name }) => name === disk)!.node
  }

  /** An image for a job of QMP's own to write to. */
  async target(format: 'raw' | 'qcow2') {
    const file = this.file(format === 'raw' ? 'img' : 'qcow2')
    if (format === 'qcow2') await qemuImg('create', '-q', '-f', 'qcow2', file, String(SIZE))
    else {
      await writeFile(file, '')
      await truncate(file, SIZE)
    }
    const node = this.name('target')
    await this.execute('blockdev-add', { driver: format, 'node-name': node, file: { driver: 'file', filename: file } })
    return { node, file, format }
  }

  /** Whether a job is over, and then that it ended as it had to. */
  async lookAtWork() {
    for (const work of this.work.values()) await this.isOver(work)
  }

  async isOver(work: Work): Promise<boolean> {
    if (this.work.get(work.disk) !== work) return true
    const end = work.own ? this.#ended.get(work.id) : await this.#diskJob(work)
    if (!end) return false
    this.work.delete(work.disk)
    this.done.push(`   ${work.id} is over${end.cancelled ? ', cancelled' : ''}${end.error ? `: ${end.error}` : ''}`)
    if (end.error !== undefined) throw new Error(`${work.kind} ${work.id} failed: ${end.error}`)
    if (end.cancelled && !work.aborted) throw new Error(`${work.kind} ${work.id} was cancelled, and nobody asked for it`)
    if (work.target) await this.#endTarget(work, work.target, end.cancelled)
    return true
  }

  async #diskJob({ disk }: Work) {
    const [job] = await this.execute<{ over: boolean; error?: string; cancelled: boolean }[]>('query-disk-jobs', {
      machine: 'db',
      disk,
    })
    return job?.over ? job : undefined
  }

  async #endTarget(work: Work, { node, file, format }: NonNullable<Work['target']>, cancelled: boolean) {
    // What it was moved to is the disk now.
    if (work.kind === 'mirror' && !cancelled && !work.held) return
    await this.execute('blockdev-del', { 'node-name': node })
    if (cancelled || !work.held) return
    await this.compareFile(file, format, work.held, work.id)
  }

  async compareFile(file: string, format: string, wanted: Buffer, what: string) {
    const raw = this.file('raw')
    await qemuImg('convert', '-U', '-f', format, '-O', 'raw', file, raw)
    const wrong = differenceOf(await readFile(raw), wanted)
    if (wrong) throw new Error(`${what} left an image that is not as the disk was: ${wrong}`)
  }

  async isReady({ id }: Work) {
    const jobs = await this.execute<{ device: string; ready: boolean }[]>('query-block-jobs')
    return jobs.some(({ device, ready }) => device === id && ready)
  }

  /** As fast as it goes, until it is over, or ready and waits. */
  async hurry(work: Work) {
    for (const each of work.group ?? [work]) {
      if (await this.isOver(each)) continue
      if (each.paused) await this.ask('block-job-resume', { device: each.id })
      each.paused = false
      await this.ask('block-job-set-speed', { device: each.id, speed: 0 })
    }
    const until = Date.now() + 20_000
    while (!(await this.isOver(work))) {
      if (await this.isReady(work)) return
      if (Date.now() > until)
        throw new Error(`${work.kind} ${work.id} does not end: ${JSON.stringify(await this.execute('query-jobs'))}`)
      await this.write()
      if (work.finalized === false && (await this.isPending(work))) await this.ask('job-finalize', { id: work.id })
      await sleep(5)
    }
  }

  async isPending({ id: wanted }: Work) {
    const jobs = await this.execute<{ id: string; status: string }[]>('query-jobs')
    return jobs.some(({ id, status }) => id === wanted && status === 'pending')
  }

  /** Until nothing works on the disk any more. */
  async over(work: Work) {
    const until = Date.now() + 20_000
    while (this.work.get(work.disk) === work && !(await this.isOver(work))) {
      if (Date.now() > until)
        throw new Error(`${work.kind} ${work.id} does not end: ${JSON.stringify(await this.execute('query-jobs'))}`)
      await sleep(5)
    }
  }

  /** A session's end by the daemon's: as if it had never been. */
  forget() {
    for (const { checkpoint } of this.sessions) this.checkpoints = this.checkpoints.filter(({ name }) => name !== checkpoint)
    this.sessions = []
    this.pushes = []
    this.work.clear()
    this.#ended.clear()
  }

  async hangUp() {
    const { transaction } = this
    this.transaction = undefined
    await transaction?.client[Symbol.asyncDispose]()
  }

  /** Pushes that are over left a point that is right. */
  async lookAtPushes() {
    for (const push of this.pushes) {
      const [session] = await this.execute<{ status: string; point?: string; reason?: string }[]>('query-backups', {
        name: push.name,
      })
      if (!session || session.status === 'running') continue
      this.pushes = this.pushes.filter(one => one !== push)
      if (session.status !== 'finished') throw new Error(`push ${push.name}: ${session.reason}`)
      this.done.push(`   ${push.name} has finished: ${session.point}`)
      await this.restore(session.point!, push.held)
    }
  }

  async look() {
    await this.lookAtWork()
    await this.lookAtPushes()
    await this.verifyNow()
  }

  override async [Symbol.asyncDispose]() {
    await this.hangUp()
    await super[Symbol.asyncDispose]()
  }
}
