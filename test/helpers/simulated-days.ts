// Days of an appliance in minutes: two disks of a machine that a guest writes to, two schedules that push them into files and into S3, a clock
// that is moved, and a daemon that is killed at random, in the middle of runs too, and stays down for a while. In the end every time
// that came must be done or explained, and every restore point be of one instant, and whole.
//
// By hand, from the project's folder: scripts/on-node-24 dist/test/helpers/simulated-days.js [MINUTES [SEED]]; and days-under-systemd.ts, where systemd
// starts the daemon again.

import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { NbdClient } from 'nbd-client-ts'
import { createLog } from '../../src/base/log.ts'
import { parseCalendar } from '../../src/calendar/calendar.ts'
import { openPlace, openRepository } from '../../src/push/open-place.ts'
import { stateSchema, type Run } from '../../src/scheduler/schedule-state.ts'
import { loadSettings } from '../../src/settings/load.ts'
import { verify } from '../../src/repository/verify.ts'
import { scratchFolder } from './control.ts'
import { done, restored, sealer } from './push-point.ts'
import { generator } from './random-bytes.ts'
import { ScriptedS3 } from './scripted-s3.ts'
import { environment, stillpoint, WHOLE } from './stillpoint.ts'

const SIZE = 2 << 20
const BLOCK = 64 << 10
const BLOCKS = SIZE / BLOCK
const DISKS = ['raw', 'qcow2'] as const
const MINUTE = 60_000
const HOUR = 60 * MINUTE
const AT = { near: '00/6:00', far: '02:30' } as const
type Name = keyof typeof AT
const NAMES = Object.keys(AT) as Name[]

const PRELOAD = fileURLToPath(new URL('moved-clock.js', import.meta.url))

export interface DaysResults {
  days: number
  kills: number
  stops: number
  /** Of the kills, as many in the middle of a run. */
  inRuns: number
  writes: number
  runs: number
  /** Times that came and were not run, and why. */
  readonly passed: Record<string, number>
  /** How the runs ended. */
  readonly outcomes: Record<string, number>
  points: number
  /** Sentences; empty when all is well. */
  readonly wrong: string[]
}

/** Where they are lived: a daemon that is ours to kill, and whose clock is ours to move. */
export interface Site {
  /** For the images, and for what is backed up into files; the daemon's to write. */
  readonly folder: string
  /** The configuration, and the part of it that is about machines, repositories and schedules. */
  readonly file: string
  configure(text: string): void
  /** The daemon's state folder, and its socket for NBD. */
  readonly state: string
  readonly socket: string
  /** Ready to serve when it is done. */
  start(ahead: number): Promise<void>
  /** Known to the daemon when it is done. */
  move(ahead: number): Promise<void>
  /** Gone when it is done. */
  end(signal: 'SIGKILL' | 'SIGTERM'): Promise<void>
  /** `stillpoint`, as somebody whose files the daemon may write. */
  run(...args: string[]): Promise<unknown>
}

/** A daemon of this process: another one after each kill. */
class OwnDaemon implements Site {
  readonly file
  readonly state
  readonly socket
  #child: ChildProcess | undefined
  #exited: Promise<unknown> | undefined

  constructor(readonly folder: string) {
    this.file = join(folder, 's.yaml')
    this.state = join(folder, 'state')
    this.socket = join(folder, 'nbd.sock')
  }

  configure(text: string) {
    writeFileSync(this.file, `state: ./state\ncontrol: { socket: ./control.sock }\nnbd: [ { unix: ./nbd.sock } ]\n${text}`)
  }

  async start(ahead: number) {
    const child = spawn(process.execPath, ['--import', PRELOAD, WHOLE, 'daemon', '--config', this.file], {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      env: { ...process.env, ...environment({ TEST_CLOCK_AHEAD: String(ahead) }) },
    })
    let log = ''
    child.stderr!.on('data', (data: Buffer) => (log = (log + data.toString()).slice(-20_000)))
    const exited = once(child, 'exit')
    while (!/ready machines=/.test(log) && child.exitCode === null) await Promise.race([once(child.stderr!, 'data'), exited])
    if (child.exitCode !== null) throw new Error(`the daemon did not start: ${log}`)
    this.#child = child
    this.#exited = exited
  }

  async move(ahead: number) {
    const known = once(this.#child!, 'message')
    this.#child!.send({ ahead })
    await Promise.race([known, this.#exited])
  }

  async end(signal: 'SIGKILL' | 'SIGTERM') {
    this.#child?.kill(signal)
    await this.#exited
  }

  async run(...args: string[]) {
    const all = [...args, ...(args[0] === 'image' ? [] : ['--config', this.file])]
    const { code, signal, stderr } = await stillpoint(all, { timeoutMs: 2 * MINUTE })
    if (code !== 0) throw new Error(`stillpoint ${all.join(' ')}: ${signal ?? code}: ${stderr}`)
  }
}

/** One write after the other, each with a number, to one disk or the other; what is not answered is written once more. */
class Guest {
  /** By disk and block: the numbers that were written there. */
  readonly written = DISKS.map(() => Array.from({ length: BLOCKS }, () => [0]))
  number = 0
  #pending: { readonly disk: number; readonly block: number } | undefined
  #clients: NbdClient[] = []

  constructor(
    private readonly socket: string,
    private readonly random: () => number,
  ) {}

  async connect() {
    this.#clients = await Promise.all(DISKS.map(disk => NbdClient.connect(`nbd+unix:///vm/${disk}?socket=${this.socket}`)))
  }

  async disconnect() {
    await Promise.allSettled(this.#clients.map(client => client[Symbol.asyncDispose]()))
  }

  /** False where the daemon was gone before it was answered. */
  async write(isKilled: () => boolean): Promise<boolean> {
    if (!this.#pending) {
      this.#pending = { disk: this.random() % 2, block: this.random() % BLOCKS }
      const { disk, block } = this.#pending
      this.written[disk]![block]!.push(++this.number)
    }
    const { disk, block } = this.#pending
    try {
      await this.#clients[disk]!.write(block * BLOCK, stamped(this.number), { fua: true })
    } catch (error) {
      if (!isKilled()) throw error
      return false
    }
    this.#pending = undefined
    return true
  }

  /** The last write up to which these disks hold everything, and nothing later; undefined where there is none. */
  cutOf(disks: readonly Buffer[]): number | undefined {
    let [least, most] = [0, this.number]
    for (const [disk, bytes] of disks.entries())
      for (let block = 0; block < BLOCKS; block++) {
        const number = numberOf(bytes.subarray(block * BLOCK, (block + 1) * BLOCK))
        const all = this.written[disk]![block]!
        const at = number === undefined ? -1 : all.indexOf(number)
        if (at < 0) return undefined
        least = Math.max(least, number!)
        most = Math.min(most, (all[at + 1] ?? Infinity) - 1)
      }
    return least <= most ? least : undefined
  }
}

const stamped = (number: number) => {
  const bytes = Buffer.alloc(BLOCK)
  for (let at = 0; at < BLOCK; at += 4) bytes.writeUInt32LE(number, at)
  return bytes
}

/** Undefined where it is not one all over. */
const numberOf = (bytes: Buffer) => (bytes.equals(stamped(bytes.readUInt32LE(0))) ? bytes.readUInt32LE(0) : undefined)

export interface DaysOptions {
  readonly seed: number
  /** Default: a folder and a daemon of its own. */
  readonly site?: Site
  /** How long, by steps of some hours; or in real time, where that is later. */
  readonly steps: number
  readonly realMs?: number
  /** And not before it was killed so often, however slow the machine. */
  readonly leastKills?: number
  readonly progress?: (results: DaysResults) => void
}

export async function liveDays(
  stack: AsyncDisposableStack,
  { seed, site: given, steps, realMs = 0, leastKills = 0, progress }: DaysOptions,
) {
  const random = generator(seed)
  const site = given ?? new OwnDaemon(await scratchFolder(stack))
  const { folder, file } = site
  const started = Date.now()
  // So that seconds do not matter: the clock begins at a full hour.
  let ahead = HOUR - (started % HOUR)
  const store = stack.use(await ScriptedS3.listen({ now: () => Date.now() + ahead }))
  const [raw, qcow2, backup] = ['disk.raw', 'disk.qcow2', 'backup'].map(name => join(folder, name)) as [string, string, string]
  site.configure(`machines: { vm: { disks: { raw: { image: ${raw}, format: raw }, qcow2: { image: ${qcow2}, format: qcow2 } } } }
repositories:
  near: { plugin: file, path: ${backup} }
  far: { plugin: s3, endpoint: "${store.endpoint}", bucket: bucket, access-key: k, secret-key: "env:TEST_S3_SECRET" }
schedules:
  near: { machines: [vm], repository: near, at: "${AT.near}", time-zone: UTC, keep: { last: 3, daily: 3 }, retry-after: 1m }
  far: { machines: [vm], repository: far, at: "${AT.far}", time-zone: UTC, keep: { last: 3 }, retry-after: 1m }
`)
  process.env['TEST_S3_SECRET'] = 'hush'
  for (const [format, path] of [
    ['raw', raw],
    ['qcow2', qcow2],
  ] as const)
    await site.run('image', 'create', '-f', format, path, String(SIZE))
  for (const name of NAMES) await site.run('repo', 'init', name)

  const results: DaysResults = {
    days: 0,
    kills: 0,
    stops: 0,
    inRuns: 0,
    writes: 0,
    runs: 0,
    passed: {},
    outcomes: {},
    points: 0,
    wrong: [],
  }
  const wrong = (what: string) => results.wrong.push(`seed ${seed}: ${what}`)
  const begin = started + ahead
  await site.start(ahead)
  stack.defer(() => site.end('SIGKILL'))
  const guest = new Guest(site.socket, random)
  await guest.connect()
  stack.defer(() => guest.disconnect())

  /** By schedule: runs by the time that they were due, and times that passed. */
  const known = new Map(
    NAMES.map(name => [name, { through: begin, runs: new Map<string, Map<number, Run>>(), passed: new Map<string, number>() }]),
  )
  let running: Name[] = []
  const look = () => {
    const { schedules } = stateSchema.parse(JSON.parse(readFileSync(join(site.state, 'schedules.json'), 'utf8')))
    running = []
    for (const name of NAMES) {
      const all = known.get(name)!
      const state = schedules[name]!
      all.through = Date.parse(state.through)
      if (state.running) running.push(name)
      for (const one of [...state.runs, ...(state.running ? [state.running] : [])]) {
        if (one.due === undefined) wrong(`run ${one.id} was asked for by nobody`)
        else all.runs.set(one.due, (all.runs.get(one.due) ?? new Map<number, Run>()).set(one.id, one))
      }
      for (const { first, last, count, reason, outcome } of state.passed) {
        if (reason === '') wrong(`${name}: ${outcome} for no reason`)
        const key = `${first} ${last} ${outcome}: ${reason}`
        if (!all.passed.has(key)) results.passed[`${outcome}: ${reason}`] = (results.passed[`${outcome}: ${reason}`] ?? 0) + count
        all.passed.set(key, count)
      }
    }
  }
  /** The daemon's clock and those of both stores. */
  const pass = async (ms: number, isDown = false) => {
    ahead += ms
    age(backup, ms)
    if (!isDown) await site.move(ahead)
  }

  for (let step = 0; step < steps || Date.now() - started < realMs || results.kills < leastKills; step++) {
    if (step % 20 === 0) progress?.(results)
    let killed = false
    const writing = (async () => {
      for (let left = random() % 20; left > 0; left--) if (!(await guest.write(() => killed))) return
    })()
    // Every fourth time it is killed soon after a time has come.
    const fate = step % 4 === 1 ? 0 : random() % 8
    const isPatient = random() % 3 > 0
    await pass(fate === 0 ? 6 * HOUR : (20 + (random() % 160)) * MINUTE)
    await sleep(random() % (fate === 0 ? 400 : 80))
    if (fate > 1) {
      await writing
      look()
      // As long as it takes, or on with the next time while it runs.
      for (let turn = 0; isPatient && running.length > 0 && turn < 200; turn++) {
        await sleep(20)
        look()
      }
      continue
    }
    killed = true
    await site.end(fate === 0 ? 'SIGKILL' : 'SIGTERM')
    await writing
    await guest.disconnect()
    look()
    if (fate === 0) results.kills++
    else results.stops++
    if (running.length > 0) results.inRuns++
    await pass((random() % 3 === 0 ? random() % 40 : 0) * HOUR, true)
    await site.start(ahead)
    await guest.connect()
  }

  // A quiet end: what is due by now is done, and a last time of each comes, with all that the guest has written in it.
  while (!(await guest.write(() => false)));
  results.writes = guest.number
  const settled = async () => {
    for (let turn = 0; turn < 2000; turn++) {
      look()
      const isBehind = NAMES.some(name => (calendarOf(name).next(known.get(name)!.through) ?? 0) <= Date.now() + ahead)
      if (running.length === 0 && !isBehind) return
      await pass(1000) // for those who wait before they try again
      await sleep(20)
    }
    wrong(`${running.join(' and ') || 'a schedule'} does not come to its end`)
  }
  await settled()
  await pass(25 * HOUR)
  await settled()
  await site.end('SIGTERM')
  look()
  results.days = Math.round((10 * (Date.now() + ahead - begin)) / 24 / HOUR) / 10

  const log = createLog('silent')
  for (const name of NAMES) {
    const { through, runs, passed } = known.get(name)!
    const calendar = calendarOf(name)
    let came = 0
    for (let time = calendar.next(begin); time !== undefined && time <= through; time = calendar.next(time)) came++
    const accounted = runs.size + [...passed.values()].reduce((sum, count) => sum + count, 0)
    if (came !== accounted) wrong(`${name}: ${came} times came, and ${accounted} are accounted for`)
    const points: string[] = []
    for (const [due, all] of runs)
      for (const { id, outcome, reason, machines } of all.values()) {
        results.runs++
        results.outcomes[outcome ?? 'none'] = (results.outcomes[outcome ?? 'none'] ?? 0) + 1
        const isGood = outcome === 'done' || outcome === 'warning'
        if (outcome === undefined || (outcome !== 'done' && !reason)) wrong(`${name}: run ${id}, due ${due}, is not explained`)
        if (isGood) points.push(`points/${machines[0]!.point}`)
      }
    await using place = await openPlace(name, (await loadSettings(file)).repositories[name]!, log)
    const repository = await openRepository(place)
    const keys = await Array.fromAsync(repository.points(), ({ key }) => key)
    results.points += keys.length
    const newest = points.sort().at(-1)
    if (newest === undefined || keys.at(-1) !== newest) wrong(`${name}: ${newest} was the last, and there is ${keys.at(-1)}`)
    const { damagedPacks, damagedPoints } = await done(verify(repository, { level: 'deep', sealer }))
    for (const { key, what } of [...damagedPacks, ...damagedPoints]) wrong(`${name}: ${key}: ${what}`)
    let before = 0
    for (const key of keys) {
      const disks: Buffer[] = []
      for (const disk of DISKS) disks.push(await restored(repository, key, disk))
      const cut = guest.cutOf(disks)
      if (cut === undefined) wrong(`${name}: ${key} is of no one instant`)
      else if (cut < before) wrong(`${name}: ${key} is of write ${cut}, and one before it of ${before}`)
      before = Math.max(before, cut ?? 0)
    }
    if (before !== guest.number) {
      const last = [...runs.values()].flatMap(all => [...all.values()]).at(-1)
      const told = JSON.stringify({ last, passed: [...passed.keys()].at(-1) })
      wrong(`${name}: the newest point is of write ${before}, and there were ${guest.number}: ${told}`)
    }
  }
  return results
}

function calendarOf(name: Name) {
  const calendar = parseCalendar(AT[name], 'UTC')
  if (typeof calendar === 'string') throw new Error(calendar)
  return calendar
}

/** As if time had passed for the files, too. */
function age(folder: string, ms: number) {
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue
    const path = join(entry.parentPath, entry.name)
    try {
      const time = (statSync(path).mtimeMs - ms) / 1000
      utimesSync(path, time, time)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error // gone meanwhile, as temporary files go
    }
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await using stack = new AsyncDisposableStack()
  const [minutes = 10, seed = Date.now() % 1e6] = process.argv.slice(2).map(Number)
  const progress = (results: DaysResults) => process.stderr.write(`${JSON.stringify(results)}\n`)
  const results = await liveDays(stack, { seed, steps: 1, realMs: minutes * MINUTE, progress })
  process.stdout.write(`${JSON.stringify(results, undefined, 2)}\n`)
  process.exitCode = results.wrong.length > 0 ? 1 : 0
}
