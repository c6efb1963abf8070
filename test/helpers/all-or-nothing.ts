// Something that a daemon does with machines' disks, stopped at each change of a file that it makes, by `kill -9` or by a disk that fails just
// then: after a restart all of it is there or nothing, the disks read as they were written, and the checkpoints know of every change.

import { watchFiles, systemError, type FileChange } from './file-changes.ts'
import { mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { cp, mkdir, readdir, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { NbdClient } from 'nbd-client-ts'
import { Appliance } from '../../src/appliance.ts'
import { messageOf } from '../../src/base/errors.ts'
import { createLog } from '../../src/base/log.ts'
import { QmpClient, type QmpEvent } from '../../src/control/qmp-client.ts'
import { loadSettings } from '../../src/settings/load.ts'
import { errorsIn } from './killed-job.ts'
import { missing, qemuImg, scratchFolder } from './qemu.ts'
import { diskContent, generator, randomBytes } from './random-bytes.ts'
import { seed } from './seed.ts'

export const SIZE = 1 << 20
export const GRANULE = 65536
const GRANULES = SIZE / GRANULE

export const DISKS = ['root', 'data'] as const

export interface Daemon extends AsyncDisposable {
  readonly folder: string
  readonly events: readonly QmpEvent[]
  execute<Result = unknown>(command: string, args?: object): Promise<Result>
  nbd(name: string, contexts?: readonly string[]): Promise<NbdClient>
  /** Waits until the job is over, with others of its group or alone. @throws the error that it ended with */
  over(id: string): Promise<void>
  stop(): Promise<void>
}

export interface Duty {
  /** Each disk is of a machine of its own, `db` and `web`, in the order of DISKS. */
  readonly apart?: boolean
  /** Guests write while it is done, and the daemon is killed or something fails. */
  readonly guests?: boolean
  /** Once: what is there before. By then each disk has two checkpoints, and changes since. */
  begin?(daemon: Daemon): Promise<unknown>
  /** So many steps of each kind; by default two. */
  readonly steps?: number
  /** What is all or nothing. It is repeated as it is when nothing has come of it. */
  act(daemon: Daemon): Promise<unknown>
  /** What the user does before it is repeated. */
  again?(daemon: Daemon): Promise<void>
  /** Looked at beside the images of the disks: the same before, or the same as after. */
  state?(daemon: Daemon): Promise<unknown>
  /** It mends what checkpoint-repair finds. */
  readonly repairs?: boolean
  /** What must hold whichever it is; sentences. */
  wrong?(daemon: Daemon): Promise<readonly string[]>
}

const isStatus = ({ event, data }: QmpEvent, id: string, status: string) =>
  event === 'JOB_STATUS_CHANGE' && (data as { id: string }).id === id && (data as { status: string }).status === status

async function start(folder: string): Promise<Daemon> {
  await using parts = new AsyncDisposableStack()
  const log = createLog('error', { write: () => undefined }, { journal: true })
  parts.use(await Appliance.start(await loadSettings(`${folder}/stillpoint.yaml`), log))
  const events: QmpEvent[] = []
  let told = Promise.withResolvers<void>()
  const onEvent = (event: QmpEvent) => {
    events.push(event)
    told.resolve()
    told = Promise.withResolvers()
  }
  const qmp = parts.use(await QmpClient.connect(`${folder}/control.sock`, { onEvent }))
  const all = parts.move()
  let ended: Promise<void> | undefined
  const stop = () => (ended ??= all.disposeAsync())
  return {
    folder,
    events,
    execute: <Result>(command: string, args: object = {}) => qmp.execute(command, args) as Promise<Result>,
    nbd: (name, contexts = []) => NbdClient.connect(`nbd+unix:///${name}?socket=${folder}/nbd.sock`, { contexts: [...contexts] }),
    async over(id) {
      // Since it was begun the last time, whatever became of one of that id before.
      const since = () => events.slice(events.findLastIndex(event => isStatus(event, id, 'created')))
      while (!since().some(event => isStatus(event, id, 'concluded'))) await told.promise
      const ended = since().findLast(
        ({ event, data }) => /^BLOCK_JOB_(COMPLETED|CANCELLED)$/.test(event) && (data as { device: string }).device === id,
      )
      const { error } = (ended?.data ?? {}) as { error?: string }
      if (error !== undefined || ended?.event === 'BLOCK_JOB_CANCELLED') throw new Error(error ?? `job ${id} was cancelled`)
    },
    stop,
    [Symbol.asyncDispose]: stop,
  }
}

type Content = ReadonlyMap<string, Buffer>

const machinesOf = ({ apart = false }: Duty) => (apart ? ['db', 'web'] : ['db'])

/** As exports are called. */
const exportOf = (disk: (typeof DISKS)[number], duty: Duty) =>
  `${duty.apart ? machinesOf(duty)[DISKS.indexOf(disk)] : 'db'}/${disk}`

/** Of every disk. */
async function read(daemon: Daemon, duty: Duty): Promise<Content> {
  const content = new Map<string, Buffer>()
  for (const disk of DISKS) {
    await using guest = await daemon.nbd(exportOf(disk, duty))
    content.set(disk, await guest.read(0, SIZE))
  }
  return content
}

interface Written {
  readonly disk: string
  readonly offset: number
  readonly data: Buffer
}

/** They write one thing after the other, each of which is durable when it is answered. Where one `mayFail` it is the last. */
class Guests {
  /** All but the last of them answered, or all. */
  readonly written: Written[] = []
  answered = 0
  #stopped = false
  readonly #running: Promise<void>

  constructor(
    private readonly daemon: Daemon,
    private readonly duty: Duty,
    private readonly mayFail = false,
  ) {
    this.#running = this.#run()
  }

  /** What the disks may hold: the last write may have been under way, or have failed. */
  allowed(now: Content) {
    return [0, 1].map(more => withWrites(now, this.written.slice(0, this.answered + more)))
  }

  async #run() {
    const random = generator(seed ^ 0x9e57)
    await using root = await this.daemon.nbd(exportOf('root', this.duty))
    await using data = await this.daemon.nbd(exportOf('data', this.duty))
    const disks = { root, data }
    while (!this.#stopped) {
      const disk = DISKS[random() % DISKS.length]!
      const write = { disk, offset: 512 * (random() % (SIZE / 512)), data: randomBytes(512, random()) }
      this.written.push(write)
      try {
        await disks[disk].write(write.offset, write.data, { fua: true })
      } catch (error) {
        if (this.mayFail) return
        throw error
      }
      this.answered++
      await sleep(3)
    }
  }

  async stop() {
    this.#stopped = true
    await this.#running
  }
}

function withWrites(content: Content, written: readonly Written[]): Content {
  const after = new Map([...content].map(([disk, bytes]) => [disk, Buffer.from(bytes)]))
  for (const { disk, offset, data } of written) data.copy(after.get(disk)!, offset)
  return after
}

interface World {
  readonly folder: string
  /** What the disks hold when it begins. */
  readonly now: Content
  readonly checkpoints: ReadonlyMap<string, Content>
}

/** Two disks of a machine, which go with the folder; as they are kept at `FOLDER.kept`. */
async function makeWorld(folder: string, seed: number, duty: Duty): Promise<World> {
  await mkdir(folder)
  const images: string[] = []
  for (const disk of DISKS) {
    await writeFile(`${folder}/content`, diskContent(SIZE, seed + images.length))
    await qemuImg('convert', '-f', 'raw', '-O', 'qcow2', `${folder}/content`, `${folder}/${disk}.qcow2`)
    images.push(`${disk}: { image: ./${disk}.qcow2, format: qcow2 }`)
  }
  await rm(`${folder}/content`)
  const names = machinesOf(duty)
  const machines = names.map((name, at) => `${name}: { disks: { ${(duty.apart ? [images[at]] : images).join(', ')} } }`)
  await writeFile(
    `${folder}/stillpoint.yaml`,
    `state: ./state
control: { socket: ./control.sock }
nbd: [ { unix: ./nbd.sock } ]
scratch: { path: ./state/scratch }
machines: { ${machines.join(', ')} }
`,
  )
  const random = generator(seed)
  const checkpoints = new Map<string, Content>()
  await using daemon = await start(folder)
  const writeSome = async () => {
    for (const disk of DISKS) {
      await using guest = await daemon.nbd(exportOf(disk, duty))
      for (let count = 0; count < 3; count++) await guest.write((random() % GRANULES) * GRANULE, randomBytes(1024, random()))
    }
  }
  for (const name of ['one', 'two']) {
    for (const machine of names) await daemon.execute('checkpoint-create', { machine, name })
    checkpoints.set(name, await read(daemon, duty))
    await writeSome()
  }
  await duty.begin?.(daemon)
  await writeSome()
  const now = await read(daemon, duty)
  await daemon.stop()
  await cp(folder, `${folder}.kept`, { recursive: true })
  return { folder, now, checkpoints }
}

/**
 * As it is at this moment. Nothing new is begun meanwhile, but what was begun on other threads may end, such as a rename: then it is looked at
 * again. Or a file becomes shorter, and Node's own copying would ask for the rest of it for ever.
 */
function copyNow(folder: string, to: string) {
  for (let attempts = 1; ; attempts++) {
    try {
      return copyFolder(folder, to)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || attempts === 100) throw error
      rmSync(to, { recursive: true, force: true })
    }
  }
}

function copyFolder(folder: string, to: string) {
  mkdirSync(to, { recursive: true })
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const [from, copy] = [join(folder, entry.name), join(to, entry.name)]
    if (entry.isDirectory()) copyFolder(from, copy)
    else if (entry.isSymbolicLink()) symlinkSync(readlinkSync(from), copy)
    else if (entry.isFile()) writeFileSync(copy, readFileSync(from), { mode: statSync(from).mode })
  }
}

async function putBack(folder: string, from: string) {
  await rm(folder, { recursive: true, force: true })
  if (from.endsWith('.kept')) await cp(from, folder, { recursive: true })
  else await rename(from, folder)
}

async function stateOf(daemon: Daemon, duty: Duty): Promise<string> {
  const machines = await daemon.execute<{ disks: { name: string; image: string }[] }[]>('query-machines')
  const images = machines
    .flatMap(({ disks }) => disks)
    .map(({ name, image }) => `${name}: ${image.slice(daemon.folder.length + 1)}`)
  return JSON.stringify([...images, (await duty.state?.(daemon)) ?? ''])
}

/** Sentences; empty when all is well. `allowed`: what the disks may hold. */
async function wrongWith(daemon: Daemon, { now, checkpoints }: World, duty: Duty, allowed = [now]): Promise<string[]> {
  const wrong: string[] = [...((await duty.wrong?.(daemon)) ?? [])]
  const found = await read(daemon, duty)
  for (const disk of DISKS)
    if (!allowed.some(content => content.get(disk)!.equals(found.get(disk)!)))
      wrong.push(`disk ${disk} does not read as it should`)
  for (const machine of machinesOf(duty)) {
    const { findings } = await daemon.execute<{ findings: object[] }>('checkpoint-repair', { machine })
    if (!duty.repairs) for (const finding of findings) wrong.push(`checkpoint-repair finds ${JSON.stringify(finding)}`)
    for (const [name, copies] of checkpoints) wrong.push(...(await notMarked(daemon, machine, name, copies, found)))
  }
  return wrong
}

async function notMarked(daemon: Daemon, machine: string, name: string, copies: Content, now: Content): Promise<string[]> {
  const wrong: string[] = []
  const session = `since-${name}`
  const begun = await daemon
    .execute<{ disks: { disk: string; export: string; bitmap: string }[] }>('backup-begin', {
      machine,
      mode: 'pull',
      name: session,
      since: name,
    })
    .catch((error: unknown) => void wrong.push(`since checkpoint ${name} there is no backup: ${messageOf(error)}`))
  if (!begun) return wrong
  for (const { disk, export: path, bitmap } of begun.disks) {
    const context = `qemu:dirty-bitmap:${bitmap}`
    await using view = await daemon.nbd(path, [context])
    const dirty = new Set<number>()
    for await (const { offset, length, status } of view.extents({ contexts: [context] }))
      if (status[context] === 1) for (let at = offset; at < offset + length; at += GRANULE) dirty.add(Math.floor(at / GRANULE))
    const copy = copies.get(disk)!
    for (let granule = 0; granule < GRANULES; granule++) {
      const [from, to] = [granule * GRANULE, (granule + 1) * GRANULE]
      if (!copy.subarray(from, to).equals(now.get(disk)!.subarray(from, to)) && !dirty.has(granule))
        wrong.push(`granule ${granule} of ${disk} changed since ${name} and is not marked`)
    }
  }
  await daemon.execute('backup-finish', { name: session })
  return wrong
}

/**
 * So many steps of each kind, picked by the seed: each takes a restart or two. By hand, more; or `all`; or `K/N`, every N-th of them from the K-th on, so that
 * N runs, one after the other or on machines of their own, are all.
 */
const asked = process.env['STILLPOINT_STEPS']
const part = /^(\d+)\/(\d+)$/
  .exec(asked ?? '')
  ?.slice(1)
  .map(Number)
const most = ({ steps = 2 }: Duty) => (part || asked === 'all' ? Infinity : Number(asked ?? steps))

function pick(count: number, duty: Duty, random: () => number): number[] {
  const [which = 1, of = 1] = part ?? []
  if (which < 1 || which > of) throw new Error(`STILLPOINT_STEPS=${asked}: there is no such part`)
  const all = Array.from({ length: count }, (_, index) => index).filter(index => index % of === which - 1)
  while (all.length > most(duty)) all.splice(random() % all.length, 1)
  return all
}

const describe = ({ what, path }: FileChange) => `${what} ${path}`

/** Each duty a test of its own. By hand, a file that takes an hour: STILLPOINT_STEPS=all STILLPOINT_SEED=... scripts/on-node-24 dist/test/duties/FILE.test.js */
export function allOrNothing(duties: Readonly<Record<string, Duty>>) {
  for (const [name, duty] of Object.entries(duties))
    t.test(
      `${name} (seed ${seed})`,
      { skip: missing('qemu-img'), timeout: asked === undefined ? 900_000 : 14_400_000 },
      async t => {
        await using stack = new AsyncDisposableStack()
        await stepByStep(t, `${await scratchFolder(stack)}/machine`, duty)
      },
    )
}

async function stepByStep(t: Test, folder: string, duty: Duty) {
  const random = generator(seed)
  const world = await makeWorld(folder, seed, duty)
  const kept = `${folder}.kept`
  const moments = `${folder}.moments`
  await mkdir(moments)

  /** In the order in which they came, of one run in which all went well; the folder is kept as it was at each. */
  const changes: FileChange[] = []
  await putBack(folder, kept)
  let before = ''
  {
    await using daemon = await start(folder)
    before = await stateOf(daemon, duty)
    t.same(await wrongWith(daemon, world, duty), [], 'before')
    await daemon.stop()
  }
  /** By moment: what guests had been answered by then. */
  const answered: number[] = []
  let written: readonly Written[] = []
  await putBack(folder, kept)
  {
    await using daemon = await start(folder)
    const guests = duty.guests ? new Guests(daemon, duty) : undefined
    const keep = () => {
      answered[changes.length] = guests?.answered ?? 0
      copyNow(folder, `${moments}/${changes.length}`)
    }
    {
      using _watching = watchFiles(folder, change => {
        keep()
        changes.push(change)
      })
      await duty.act(daemon)
      keep() // answered: it must not be undone
    }
    await guests?.stop()
    written = guests?.written ?? []
  }
  /** The last write may have been under way. */
  const allowedAt = (moment: number) => [0, 1].map(more => withWrites(world.now, written.slice(0, answered[moment]! + more)))
  const after = await (async () => {
    await using daemon = await start(folder)
    const state = await stateOf(daemon, duty)
    t.same(await wrongWith(daemon, world, duty, [withWrites(world.now, written)]), [], 'after')
    return state
  })()
  t.ok(changes.length > 0, `${changes.length} changes of files`)

  const states = { [before]: 'nothing', [after]: 'all' }
  const check = async (at: string, { wanted, allowed }: { wanted?: string; allowed?: Content[] } = {}) => {
    await using daemon = await start(folder)
    const state = await stateOf(daemon, duty)
    if (states[state] === undefined) t.fail(`${at}: half of it: ${state}`, { before, after })
    else if (wanted !== undefined) t.equal(state, wanted, at)
    t.same(await wrongWith(daemon, world, duty, allowed), [], at)
    if (state === before && before !== after) {
      const repeated = await attempt(() => repeat(daemon, duty))
      t.equal(repeated, undefined, `${at}: it can be done again as it is`)
      t.equal(await stateOf(daemon, duty), after, at)
    }
    await daemon.stop()
    for (const image of await readdir(folder))
      if (image.endsWith('.qcow2')) t.same(await errorsIn(`${folder}/${image}`), [], `${at}: ${image}`)
  }

  for (const moment of pick(changes.length, duty, random)) {
    const at = `killed before change ${moment}, ${describe(changes[moment]!)}`
    await putBack(folder, `${moments}/${moment}`)
    await check(at, { allowed: allowedAt(moment) })
  }
  await putBack(folder, `${moments}/${changes.length}`)
  await check('killed when it had been answered', { wanted: after, allowed: allowedAt(changes.length) })
  await rm(moments, { recursive: true })

  for (const step of pick(changes.length, duty, random)) {
    await putBack(folder, kept)
    const daemon = await start(folder)
    let count = 0
    let at = 'nothing failed'
    let failure: string | undefined
    /** The file driver trusts it no more until it is opened anew, as QEMU's does not. */
    let lost = false
    const guests = duty.guests ? new Guests(daemon, duty, true) : undefined
    {
      using _watching = watchFiles(folder, change => {
        if (count++ !== step) return
        at = `change ${step} fails, ${describe(change)}`
        lost = change.what === 'fdatasync'
        throw systemError('ENOSPC', change.what)
      })
      failure = await attempt(() => duty.act(daemon))
    }
    await guests?.stop()
    const allowed = guests?.allowed(world.now) ?? [world.now]
    const live = await stateOf(daemon, duty)
    t.ok(states[live], `${at} (${failure ?? 'done all the same'}): all or nothing`, { live, before, after })
    if (failure === undefined) t.equal(live, after, `${at}: what was answered is done`)
    if (!lost) t.same(await wrongWith(daemon, world, duty, allowed), [], `${at} (${failure ?? 'done all the same'})`)
    if (!lost && live === before && before !== after && states[live]) {
      const repeated = await attempt(() => repeat(daemon, duty))
      t.equal(repeated, undefined, `${at}: (${failure}) it can be done again as it is`)
    }
    const ended = await attempt(() => daemon.stop())
    await check(`${at}, and a restart${ended === undefined ? '' : ` after ${ended}`}`, { allowed })
  }
}

async function repeat(daemon: Daemon, duty: Duty) {
  await duty.again?.(daemon)
  await duty.act(daemon)
}

async function attempt(work: () => Promise<unknown>): Promise<string | undefined> {
  try {
    await work()
    return undefined
  } catch (error) {
    return messageOf(error)
  }
}

/** Waits for the end of a job of a disk. @throws what it ended with */
export async function diskJobOver(daemon: Daemon, disk: string) {
  for (;;) {
    const [job] = await daemon.execute<{ over: boolean; error?: string }[]>('query-disk-jobs', { machine: 'db', disk })
    if (job?.over) {
      if (job.error !== undefined) throw new Error(job.error)
      return
    }
    await sleep(5)
  }
}
