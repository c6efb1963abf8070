// A machine whose disk is a chain of three images with checkpoints, and a daemon that is killed while a job works on it and a guest writes;
// what the next daemon finds of the disk, and of what changed since each checkpoint.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { cp, rm, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from 'nbd-client-ts'
import { QmpClient, type QmpEvent } from '../../src/control/qmp-client.ts'
import { qemuImg, run } from './qemu.ts'
import { diskContent, generator, randomBytes } from './random-bytes.ts'
import { environment, WHOLE } from './stillpoint.ts'

export const SIZE = 8 << 20
export const GRANULE = 65536
const GRANULES = SIZE / GRANULE
const WRITERS = 4

export const IMAGES = { base: 'base.qcow2', middle: 'middle.qcow2', top: 'top.qcow2' } as const

export interface Daemon extends AsyncDisposable {
  readonly folder: string
  /** All there were, in order. */
  readonly events: readonly QmpEvent[]
  /** What it logged. */
  log(): string
  execute<Result = unknown>(command: string, args?: object): Promise<Result>
  nbd(name: string, contexts?: readonly string[]): Promise<NbdClient>
  /** Resolves at the first event that it holds for, of those that were and those to come. */
  seen(holds: (event: QmpEvent) => boolean): Promise<QmpEvent>
  kill(): Promise<void>
  stop(): Promise<void>
}

export async function startDaemon(folder: string): Promise<Daemon> {
  const child = spawn(process.execPath, [WHOLE, 'daemon', '--config', `${folder}/stillpoint.yaml`], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, ...environment() },
  })
  const exited = once(child, 'exit')
  let said = ''
  child.stderr.on('data', (data: Buffer) => (said += data.toString()))
  while (!/ready machines=/.test(said) && child.exitCode === null) await Promise.race([once(child.stderr, 'data'), exited])
  if (child.exitCode !== null) throw new Error(`the daemon did not start: ${said}`)
  const events: QmpEvent[] = []
  const listeners = new Set<() => void>()
  const qmp = await QmpClient.connect(`${folder}/control.sock`, {
    onEvent: event => {
      events.push(event)
      for (const listener of listeners) listener()
    },
  })
  const end = async (signal: NodeJS.Signals) => {
    child.kill(signal)
    await exited
  }
  return {
    folder,
    events,
    log: () => said,
    execute: <Result>(command: string, args: object = {}) => qmp.execute(command, args) as Promise<Result>,
    nbd: (name, contexts = []) => NbdClient.connect(`nbd+unix:///${name}?socket=${folder}/nbd.sock`, { contexts: [...contexts] }),
    seen: holds =>
      new Promise<QmpEvent>(resolve => {
        const look = () => {
          const found = events.find(holds)
          if (!found) return
          listeners.delete(look)
          resolve(found)
        }
        listeners.add(look)
        look()
      }),
    kill: () => end('SIGKILL'),
    stop: () => end('SIGTERM'),
    [Symbol.asyncDispose]: () => end('SIGKILL'),
  }
}

/** The disk as it was at each checkpoint. */
export type Copies = ReadonlyMap<string, Buffer>

/** Makes the machine, and keeps it as it is at `FOLDER.kept`, to which `again` brings it back. */
export async function makeMachine(folder: string, seed: number): Promise<Copies> {
  await writeFile(`${folder}/content`, diskContent(SIZE, seed))
  await qemuImg('convert', '-f', 'raw', '-O', 'qcow2', `${folder}/content`, `${folder}/${IMAGES.base}`)
  await rm(`${folder}/content`)
  await writeFile(
    `${folder}/stillpoint.yaml`,
    `state: ./state
control: { socket: ./control.sock }
nbd: [ { unix: ./nbd.sock } ]
machines: { db: { disks: { root: { image: ./${IMAGES.base}, format: qcow2 } } } }
`,
  )
  const copies = new Map<string, Buffer>()
  await using daemon = await startDaemon(folder)
  await using guest = await daemon.nbd('db/root')
  const random = generator(seed)
  const writeSome = async () => {
    for (let count = 0; count < 60; count++)
      await guest.write((random() % GRANULES) * GRANULE + 512 * (random() % 64), randomBytes(30_000, random()))
  }
  const checkpoint = async (name: string) => {
    await daemon.execute('checkpoint-create', { machine: 'db', name })
    copies.set(name, await guest.read(0, SIZE))
  }
  const snapshot = (node: string, overlay: keyof typeof IMAGES) =>
    daemon.execute('blockdev-snapshot-sync', {
      'node-name': node,
      'snapshot-file': `${folder}/${IMAGES[overlay]}`,
      'snapshot-node-name': overlay,
    })
  await checkpoint('one')
  await writeSome()
  await snapshot('db.root', 'middle')
  await writeSome()
  await checkpoint('two')
  await writeSome()
  await snapshot('middle', 'top')
  await writeSome()
  await checkpoint('three')
  await writeSome()
  await daemon.stop()
  await cp(folder, `${folder}.kept`, { recursive: true })
  return copies
}

export async function again(folder: string) {
  await rm(folder, { recursive: true })
  await cp(`${folder}.kept`, folder, { recursive: true })
}

/** Guests that write all over the disk until the daemon is gone, some of it durably. */
export class Load {
  /** How a granule may read: what was written to it, oldest first, from the last durable write on. */
  readonly #may = new Map<number, readonly Buffer[]>()
  readonly #ended: Promise<unknown>
  #gone = false
  answered = 0
  durable = 0

  constructor(
    private readonly guest: NbdClient,
    private readonly before: Buffer,
    private readonly random: () => number,
  ) {
    this.#ended = Promise.all(Array.from({ length: WRITERS }, (_, index) => this.#write(index)))
  }

  /** The daemon is killed, or will be told to end. */
  async end(killed: () => Promise<void>) {
    this.#gone = true
    await killed()
    await this.#ended
  }

  /** Sentences about granules that do not read as they must. */
  wrongIn(now: Buffer): string[] {
    const wrong = Array.from({ length: GRANULES }, (_, granule) => granule).filter(granule => {
      const may = this.#may.get(granule) ?? [slice(this.before, granule)]
      return !may.some(content => content.equals(slice(now, granule)))
    })
    return wrong.length === 0 ? [] : [`what was written is not in ${wrong.length} granules: ${wrong.join(' ')}`]
  }

  /** Each writer has granules of its own, so what is there at an instant is known. */
  async #write(index: number) {
    const { random } = this
    while (!this.#gone) {
      const granule = WRITERS * (random() % (GRANULES / WRITERS)) + index
      const at = 512 * (random() % 64)
      const fua = random() % 3 === 0
      const may = this.#may.get(granule) ?? [slice(this.before, granule)]
      const next = Buffer.from(may.at(-1)!)
      const data = randomBytes(512 * (1 + (random() % 60)), random())
      next.set(data, at)
      this.#may.set(granule, [...may, next])
      try {
        await this.guest.write(granule * GRANULE + at, data, { fua })
      } catch (error) {
        if (!this.#gone) throw error
        return
      }
      this.answered++
      if (!fua) continue
      this.durable++
      this.#may.set(granule, [next])
    }
  }
}

const slice = (disk: Buffer, granule: number) => disk.subarray(granule * GRANULE, (granule + 1) * GRANULE)

export interface Found {
  readonly now: Buffer
  /** Sentences; empty when all is well. */
  readonly wrong: string[]
  /** Of checkpoints that are of no use any more, as they are told. */
  readonly unusable: string[]
  /** Granules that increments have and that did not change, over those that did. */
  readonly extra: number
}

/** What a daemon has of the disk: now, and of what changed since each checkpoint. */
export async function lookAt(daemon: Daemon, copies: Copies): Promise<Found> {
  const wrong: string[] = []
  const unusable: string[] = []
  let extra = 0
  const now = await read(daemon)
  const checkpoints = await daemon.execute<{ name: string; usable: boolean; problem?: string }[]>('query-checkpoints')
  if (checkpoints.map(({ name }) => name).join() !== [...copies.keys()].join()) wrong.push('checkpoints are gone')
  for (const { name, usable, problem = '' } of checkpoints) {
    if (!usable) {
      unusable.push(`${name}: ${problem}`)
      if (!problem) wrong.push(`it is not said why checkpoint ${name} is of no use`)
      continue
    }
    const session = `since-${name}`
    const { disks } = await daemon.execute<{ disks: { export: string; bitmap: string }[] }>('backup-begin', {
      machine: 'db',
      mode: 'pull',
      name: session,
      since: name,
    })
    const { export: path, bitmap } = disks[0]!
    const context = `qemu:dirty-bitmap:${bitmap}`
    const dirty = new Set<number>()
    {
      await using view = await daemon.nbd(path, [context])
      for await (const { offset, length, status } of view.extents({ contexts: [context] })) {
        if (status[context] !== 1) continue
        for (let at = offset; at < offset + length; at += GRANULE) dirty.add(Math.floor(at / GRANULE))
      }
      if (!(await view.read(0, SIZE)).equals(now)) wrong.push('the frozen view is not what the guest reads')
    }
    await daemon.execute('backup-finish', { name: session })
    const copy = copies.get(name)!
    for (let granule = 0; granule < GRANULES; granule++) {
      if (slice(copy, granule).equals(slice(now, granule))) extra += dirty.has(granule) ? 1 : 0
      else if (!dirty.has(granule)) wrong.push(`granule ${granule} changed since ${name} and is not marked`)
    }
  }
  return { now, wrong, unusable, extra }
}

async function read(daemon: Daemon) {
  await using guest = await daemon.nbd('db/root')
  return await guest.read(0, SIZE)
}

/** Errors in an image, by QEMU; clusters that nobody needs any more are allowed. */
export async function errorsIn(image: string): Promise<string[]> {
  const { status, stdout, stderr } = await run('qemu-img', ['check', '-f', 'qcow2', image])
  return status === 0 || status === 3 ? [] : [`qemu-img check ${image}: exit code ${status}: ${stdout}${stderr}`]
}

export const within = async (ms: number, what: string, promise: Promise<unknown>) => {
  const stop = new AbortController()
  const late = sleep(ms, undefined, { signal: stop.signal }).then(
    () => {
      throw new Error(`${what}: not within ${ms / 1000} s`)
    },
    () => undefined,
  )
  try {
    await Promise.race([promise, late])
  } finally {
    stop.abort()
  }
}
