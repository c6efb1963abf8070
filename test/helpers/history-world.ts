// A machine whose whole history is known: what its disks hold now and held at each checkpoint, whatever is done with them meanwhile, by a
// daemon in a process of its own that can be killed.

import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync } from 'node:fs'
import { readFile, rm, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from 'nbd-client-ts'
import { QmpClient, type QmpClientOptions, type QmpEvent } from '../../src/control/qmp-client.ts'
import { qemuCheck, qemuImg } from './qemu.ts'
import { diskContent, generator, randomBytes } from './random-bytes.ts'
import { WHOLE } from './stillpoint.ts'
import { run } from './tools.ts'

export const GRANULE = 65536
export const SIZE = 32 * GRANULE

/** No command and no request takes longer, however busy the machine is; what does hangs. */
const PATIENCE_MS = 20_000

export async function soon<T>(what: string, promise: Promise<T>): Promise<T> {
  using timer = new DisposableStack()
  const late = Promise.withResolvers<never>()
  timer.adopt(
    setTimeout(() => late.reject(new Error(`${what} hangs`)), PATIENCE_MS),
    clearTimeout,
  )
  return await Promise.race([promise, late.promise])
}

export interface KnownCheckpoint {
  readonly name: string
  /** What each disk held at it. */
  readonly held: ReadonlyMap<string, Buffer>
}

interface ImageReply {
  readonly filename: string
  readonly 'backing-image'?: ImageReply
}

/** Where the bytes differ, by sectors, in a few words. */
export function differenceOf(found: Buffer, wanted: Buffer): string | undefined {
  if (found.equals(wanted)) return undefined
  const wrong: number[] = []
  for (let at = 0; at < SIZE; at += 512)
    if (!found.subarray(at, at + 512).equals(wanted.subarray(at, at + 512))) wrong.push(at / 512)
  const zero = wrong.every(sector => found.subarray(sector * 512, sector * 512 + 512).every(byte => byte === 0))
  return `${wrong.length} sectors from ${wrong[0]} to ${wrong.at(-1)}${zero ? ', which read as zeroes' : ''}`
}

export class HistoryWorld implements AsyncDisposable {
  readonly content = new Map<string, Buffer>()
  checkpoints: KnownCheckpoint[] = []
  readonly done: string[] = []
  #daemon: { readonly qmp: QmpClient; readonly kill: (signal: NodeJS.Signals) => Promise<void> } | undefined
  #guests = new Map<string, NbdClient>()
  #child: ChildProcess | undefined
  #count = 0
  #sessions = 0
  #said = ''
  /** Since then an image may have clusters that nobody uses. */
  #killed = false
  /** Of what guests write: how often they do while something else goes on is a matter of time, and changes nothing else. */
  readonly #random: () => number

  constructor(
    readonly folder: string,
    readonly next: () => number,
    seed: number,
  ) {
    this.#random = generator(seed ^ 0x77)
  }

  /** `root` is a raw image, `data` qcow2. */
  static async create<World extends HistoryWorld>(
    this: new (folder: string, next: () => number, seed: number) => World,
    folder: string,
    seed: number,
  ): Promise<World> {
    const world = new this(folder, generator(seed), seed)
    for (const [index, disk] of ['root', 'data'].entries()) {
      const content = diskContent(SIZE, seed + index)
      world.content.set(disk, content)
      await writeFile(`${folder}/${disk}.raw`, content)
    }
    await qemuImg('convert', '-f', 'raw', '-O', 'qcow2', `${folder}/data.raw`, `${folder}/data.qcow2`)
    await writeFile(
      `${folder}/s.yaml`,
      `state: ./state
control: { socket: ./control.sock }
nbd: [ { unix: ./nbd.sock } ]
machines: { db: { disks: { root: { image: ./root.raw, format: raw }, data: { image: ./data.qcow2, format: qcow2 } } } }
repositories: { local: { plugin: file, path: ./repository } }
`,
    )
    await run(process.execPath, [WHOLE, 'repo', 'init', 'local', '--config', `${folder}/s.yaml`], { timeoutMs: 120_000 })
    await world.start()
    return world
  }

  get disks() {
    return [...this.content.keys()]
  }

  /** One of them. */
  pick<T>(all: readonly T[]): T {
    return all[this.next() % all.length]!
  }

  execute = <Result>(command: string, args: object = {}) =>
    soon(`${command} ${JSON.stringify(args)}`, this.#daemon!.qmp.execute(command, args) as Promise<Result>)

  /** Of the daemon that runs: the last that it told its log. */
  get said() {
    return this.#said.slice(-4000)
  }

  protected onEvent(_event: QmpEvent) {
    // Here nobody asks; a world that does has its own.
  }

  async start() {
    const child = spawn(process.execPath, [WHOLE, 'daemon', '--config', `${this.folder}/s.yaml`], {
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    const exit = once(child, 'exit')
    this.#said = ''
    child.stderr.setEncoding('utf8').on('data', (text: string) => (this.#said += text))
    this.#child = child
    // The word alone is in others as well: an image is there already.
    while (!/ ready /.test(this.#said)) {
      if (child.exitCode !== null || child.signalCode !== null) throw new Error(`the daemon did not start: ${this.#said}`)
      await sleep(20)
    }
    const kill = async (signal: NodeJS.Signals) => {
      child.kill(signal)
      await exit
      // Whoever kills it is not told; what it said while it lived must not be a bug.
      if (this.#said.includes('by a bug')) throw new Error(this.#said)
    }
    this.#daemon = { qmp: await this.client({ onEvent: event => this.onEvent(event) }), kill }
    for (const disk of this.disks) this.#guests.set(disk, await this.connect(`db/${disk}`))
  }

  client(options: QmpClientOptions = {}) {
    return QmpClient.connect(`${this.folder}/control.sock`, options)
  }

  connect(name: string, contexts: readonly string[] = []) {
    return NbdClient.connect(`nbd+unix:///${name}?socket=${this.folder}/nbd.sock`, { contexts: [...contexts] })
  }

  /** What was answered is flushed before, so that it has to be there. */
  async end(signal: NodeJS.Signals) {
    for (const guest of this.#guests.values()) {
      await guest.flush()
      if (signal === 'SIGTERM') await guest.close()
    }
    if (signal === 'SIGKILL') this.#killed = true
    const { qmp, kill } = this.#daemon!
    this.#daemon = undefined
    await soon(`the end by ${signal}`, kill(signal))
    await qmp[Symbol.asyncDispose]()
    // The connection is gone; nothing was under way.
    if (signal !== 'SIGTERM')
      for (const guest of this.#guests.values()) await guest.close({ graceMs: 0 }).catch((error: unknown) => void error)
  }

  async write() {
    const disk = this.disks[this.#random() % this.disks.length]!
    const content = this.content.get(disk)!
    const length = 512 * (1 + (this.#random() % 200))
    const offset = 512 * (this.#random() % ((SIZE - length) / 512))
    const guest = this.#guests.get(disk)!
    if (this.#random() % 4 === 0) {
      await soon('a write', guest.zero(offset, length))
      content.fill(0, offset, offset + length)
    } else {
      const data = randomBytes(length, this.#random())
      await soon('a write', guest.write(offset, data))
      data.copy(content, offset)
    }
  }

  /** A new name for a file. */
  file(ending: string) {
    return `${this.folder}/${++this.#count}.${ending}`
  }

  async checkpoint(): Promise<void> {
    const name = `c${++this.#count}`
    await this.execute('checkpoint-create', { machine: 'db', name })
    this.remember(name)
  }

  /** What the disks hold now. */
  copy(): Map<string, Buffer> {
    return new Map([...this.content].map(([disk, bytes]) => [disk, Buffer.from(bytes)]))
  }

  remember(name: string) {
    this.checkpoints.push({ name, held: this.copy() })
  }

  /** Files of a disk's chain, the one that is written first. */
  async chainOf(disk: string): Promise<string[]> {
    const [machine] = await this.execute<[{ disks: { name: string; node: string }[] }]>('query-machines')
    const { node } = machine.disks.find(({ name }) => name === disk)!
    const nodes = await this.execute<{ 'node-name': string; image: ImageReply }[]>('query-named-block-nodes')
    const files: string[] = []
    const active = nodes.find(one => one['node-name'] === node)
    // A job that pivots by itself has moved the disk between the two questions.
    if (!active) return this.chainOf(disk)
    let image: ImageReply | undefined = active.image
    for (; image; image = image['backing-image']) files.push(image.filename)
    return files
  }

  /** The nodes that are open, for who looks for what went wrong. */
  async describe(): Promise<string> {
    if (!this.#daemon) return 'the daemon does not run'
    const nodes = await this.execute<{ 'node-name': string; drv: string; file: string }[]>('query-named-block-nodes', {
      flat: true,
    })
    return nodes.map(one => `${one['node-name']} ${one.drv} ${one.file}`).join('\n')
  }

  /** Waits for the disk's job, while the guest writes. */
  async jobOver(disk: string, until: 'over' | 'ready' = 'over'): Promise<{ error?: string; cancelled?: boolean }> {
    for (;;) {
      const [job] = await this.execute<[{ over: boolean; ready: boolean; error?: string }]>('query-disk-jobs', {
        machine: 'db',
        disk,
      })
      if (job.over || (until === 'ready' && job.ready)) return job
      await this.write()
      await sleep(5)
    }
  }

  /** The disks hold what they should; and since each checkpoint all that changed is known. */
  async verify() {
    await this.verifyNow()
    const checkpoint = this.checkpoints.length > 0 ? this.pick(this.checkpoints) : undefined
    for (const one of new Set([checkpoint, this.checkpoints[0]])) await this.pull(one)
  }

  /** What can be seen without a session. */
  async verifyNow() {
    for (const disk of this.disks) {
      const found = await soon('a read', this.#guests.get(disk)!.read(0, SIZE))
      const wrong = differenceOf(found, this.content.get(disk)!)
      if (wrong) throw new Error(`${disk} does not hold what was written to it: ${wrong}`)
    }
    const known = await this.execute<{ name: string; usable: boolean; problem?: string }[]>('query-checkpoints', {
      machine: 'db',
    })
    const own = known.filter(({ name }) => name.startsWith('c'))
    const names = own.map(({ name }) => name).join()
    if (names !== this.checkpoints.map(({ name }) => name).join()) throw new Error(`the checkpoints are ${names}`)
    for (const { name, usable, problem } of own) if (!usable) throw new Error(`${name} is not usable: ${problem}`)
  }

  /** A backup that is read while the guest writes: it is of its instant, and says all that changed since the checkpoint. */
  async pull(since: KnownCheckpoint | undefined, checkpoint?: string) {
    const name = `s${++this.#sessions}`
    await this.execute('backup-begin', { machine: 'db', mode: 'pull', name, since: since?.name, checkpoint })
    const then = this.copy()
    for (let count = this.next() % 4; count > 0; count--) await this.write()
    for (const disk of this.disks) await this.readView(name, disk, then.get(disk)!, since)
    await this.execute('backup-finish', { name })
    return then
  }

  /** All of a session's view of a disk, and what has changed since its checkpoint. */
  async readView(name: string, disk: string, then: Buffer, since: KnownCheckpoint | undefined) {
    const context = `qemu:dirty-bitmap:backup-${disk}`
    const reader = await soon('to connect', this.connect(`${name}/${disk}`, since ? [context] : []))
    try {
      const found = await soon('a read', reader.read(0, SIZE))
      const wrong = differenceOf(found, then)
      if (wrong) throw new Error(`session ${name}: ${disk} is not as it was at the instant: ${wrong}`)
      if (since) {
        const dirty = new Set<number>()
        for await (const { offset, length, status } of reader.extents())
          if (status[context]! & 1) for (let at = offset; at < offset + length; at += GRANULE) dirty.add(Math.floor(at / GRANULE))
        const before = since.held.get(disk)!
        for (let granule = 0; granule < SIZE / GRANULE; granule++) {
          const [from, to] = [granule * GRANULE, (granule + 1) * GRANULE]
          if (!before.subarray(from, to).equals(found.subarray(from, to)) && !dirty.has(granule))
            throw new Error(`session ${name}: granule ${granule} of ${disk} has changed since ${since.name} and is not marked`)
        }
      }
    } finally {
      await reader.close()
    }
  }

  /** A restore point, restored and compared. */
  async push() {
    const name = `p${++this.#sessions}`
    await this.execute('backup-begin', { machine: 'db', mode: 'push', repository: 'local', name })
    const then = this.copy()
    let session: { status: string; point?: string; reason?: string }
    do {
      await this.write()
      ;[session] = await this.execute<[typeof session]>('query-backups', { name })
    } while (session.status === 'running')
    if (session.status !== 'finished') throw new Error(`the push failed: ${session.reason}`)
    await this.restore(session.point!, then)
  }

  async restore(point: string, then: ReadonlyMap<string, Buffer>) {
    for (const disk of this.disks) {
      const file = this.file('restored')
      await run(process.execPath, [WHOLE, 'restore', 'local', point, disk, file, '--config', `${this.folder}/s.yaml`], {
        timeoutMs: 120_000,
      })
      if (!(await readFile(file)).equals(then.get(disk)!)) throw new Error(`${point}: ${disk} is not as it was at the instant`)
      await rm(file)
    }
  }

  /** Images are clean, and read by QEMU as they should. The daemon is not running. */
  async checkImages(chains: ReadonlyMap<string, string>) {
    for (const name of readdirSync(this.folder).filter(name => name.endsWith('.qcow2'))) {
      const complaint = await qemuCheck(`${this.folder}/${name}`)
      // What was allocated and not used yet is lost with the daemon, and harms nobody.
      if (complaint && !(this.#killed && complaint.startsWith('exit code 3'))) throw new Error(`${name}: ${complaint}`)
    }
    for (const [disk, image] of chains) {
      if (!existsSync(image)) throw new Error(`${image} is gone`)
      const raw = this.file('raw')
      await qemuImg('convert', '-f', image.endsWith('.qcow2') ? 'qcow2' : 'raw', '-O', 'raw', image, raw)
      if (!(await readFile(raw)).equals(this.content.get(disk)!)) throw new Error(`QEMU reads other bytes of ${disk} in ${image}`)
      await rm(raw)
    }
  }

  async [Symbol.asyncDispose]() {
    this.#child?.kill('SIGKILL')
    await this.#daemon?.qmp[Symbol.asyncDispose]()
  }
}
