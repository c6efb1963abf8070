// A daemon with a machine of one disk or several, for tests of what is done with them while a guest writes.

import { readFile, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from 'nbd-client-ts'
import { Appliance } from '../../src/appliance.ts'
import { createLog } from '../../src/base/log.ts'
import { QmpClient, type QmpEvent } from '../../src/control/qmp-client.ts'
import { loadSettings } from '../../src/settings/load.ts'
import { qemuImg } from './qemu.ts'
import { diskContent, generator, randomBytes } from './random-bytes.ts'

export const MiB = 1 << 20
export const SIZE = 8 * MiB
export const GRANULE = 65536

export type DiskKind = 'raw' | 'qcow2' | 'chain'

export interface DiskJobReply {
  readonly status: string
  readonly ready: boolean
  readonly over: boolean
  readonly error?: string
}

/** Images in a folder, and a configuration for them; returns what the disk holds. `chain` is top.qcow2 over base.qcow2, by relative name. */
export async function makeDisk(folder: string, kind: DiskKind, disks: readonly string[] = ['root']): Promise<Buffer> {
  const content = diskContent(SIZE, 5)
  await writeFile(`${folder}/content`, content)
  const lines: string[] = []
  for (const disk of disks) {
    const suffix = disks.length > 1 ? `-${disk}` : ''
    const image = kind === 'raw' ? `disk${suffix}.raw` : kind === 'qcow2' ? `disk${suffix}.qcow2` : `top${suffix}.qcow2`
    const bottom = kind === 'chain' ? `base${suffix}.qcow2` : image
    const format = kind === 'raw' ? 'raw' : 'qcow2'
    await writeFile(`${folder}/${bottom}`, await imageOf(folder, format))
    if (kind === 'chain') await qemuImg('create', '-q', '-f', 'qcow2', '-b', bottom, '-F', 'qcow2', `${folder}/${image}`)
    lines.push(`${disk}: { image: ./${image}, format: ${format} }`)
  }
  await writeFile(
    `${folder}/stillpoint.yaml`,
    `state: ./state
control: { socket: ./control.sock }
nbd: [ { unix: ./nbd.sock } ]
machines: { db: { disks: { ${lines.join(', ')} } } }
`,
  )
  return content
}

const images = new Map<string, Buffer>()

/** Made once for all tests of a file. */
async function imageOf(folder: string, format: string): Promise<Buffer> {
  const known = images.get(format)
  if (known) return known
  await qemuImg('convert', '-f', 'raw', '-O', format, `${folder}/content`, `${folder}/made`)
  const made = await readFile(`${folder}/made`)
  images.set(format, made)
  return made
}

export interface DiskDaemon extends AsyncDisposable {
  readonly folder: string
  readonly events: readonly QmpEvent[]
  execute<Result = unknown>(command: string, args?: object): Promise<Result>
  nbd(name: string): Promise<NbdClient>
  disks(): Promise<[{ image: string; node: string }, ...{ image: string; node: string }[]]>
  /** Waits until what works on the disk is ready, or over. */
  ready(): Promise<DiskJobReply>
  over(): Promise<DiskJobReply>
  stop(): Promise<void>
}

export async function diskDaemon(folder: string): Promise<DiskDaemon> {
  const said: string[] = []
  const log = createLog('debug', { write: line => said.push(line) }, { journal: true })
  const appliance = await Appliance.start(await loadSettings(`${folder}/stillpoint.yaml`), log)
  const events: QmpEvent[] = []
  const qmp = await QmpClient.connect(`${folder}/control.sock`, { onEvent: event => events.push(event) })
  const clients: NbdClient[] = []
  let ended: Promise<void> | undefined
  const end = async () => {
    for (const client of clients) await client.close()
    await qmp[Symbol.asyncDispose]()
    await appliance[Symbol.asyncDispose]()
  }
  const stop = () => (ended ??= end())
  const execute = <Result>(command: string, args: object = {}) => qmp.execute(command, args) as Promise<Result>
  const until = async (done: (job: DiskJobReply) => boolean) => {
    for (;;) {
      const [job] = await execute<DiskJobReply[]>('query-disk-jobs', { machine: 'db', disk: 'root' })
      if (!job) throw new Error('nothing works on the disk')
      if (job.over || done(job)) return job
      await sleep(10)
    }
  }
  return {
    folder,
    events,
    execute,
    async nbd(name) {
      const client = await NbdClient.connect(`nbd+unix:///${name}?socket=${folder}/nbd.sock`)
      clients.push(client)
      return client
    },
    async disks() {
      const [machine] = await execute<{ disks: Awaited<ReturnType<DiskDaemon['disks']>> }[]>('query-machines')
      return machine!.disks
    },
    ready: () => until(job => job.ready),
    over: () => until(() => false),
    stop,
    [Symbol.asyncDispose]: stop,
  }
}

/** A guest that writes somewhere all the time, here and there zeroes; `content` is what it has written. */
export class Writer implements AsyncDisposable {
  #stopped = false
  #count = 0
  readonly #running: Promise<void>

  constructor(
    private readonly client: NbdClient,
    private readonly content: Buffer,
    private readonly seed = 11,
  ) {
    this.#running = this.#run()
  }

  async #run() {
    const next = generator(this.seed)
    while (!this.#stopped) {
      const length = 512 * (1 + (next() % 100))
      const offset = 512 * (next() % ((SIZE - length) / 512))
      if (next() % 5 === 0) {
        await this.client.zero(offset, length)
        this.content.fill(0, offset, offset + length)
      } else {
        const data = randomBytes(length, next())
        await this.client.write(offset, data)
        data.copy(this.content, offset)
      }
      this.#count++
      await sleep(1)
    }
  }

  /** Waits until it has written so often more. */
  async atLeast(more: number) {
    const wanted = this.#count + more
    while (this.#count < wanted) await Promise.race([sleep(5), this.#running])
  }

  async stop() {
    this.#stopped = true
    await this.#running
  }

  async [Symbol.asyncDispose]() {
    await this.stop()
  }
}
