// Raw images over NBD: our daemon with a dirty bitmap that records, and with a pull backup open as well, against other people's servers,
// each with the same load in turns.

import { open, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { randomFillSync } from 'node:crypto'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { run } from '../demo/tools.ts'
import { fioResult } from '../fio.ts'
import { steady, type SteadyLoad } from '../steady.ts'
import { plotRatios } from '../plot.ts'
import { digits, median, spread, type Part, type Report } from '../report.ts'
import { daemonOptions, servers, startProgram } from '../servers.ts'

const KiB = 1024
const MiB = 2 ** 20
/** Large enough that a copy of it takes several times what its client takes to start. */
const SIZE = 1024 * MiB
/** Of it, what small requests go to. */
const BUSY = 256 * MiB
/** What 100 ticks of a process's times in /proc are (proc(5)): USER_HZ is 100 on all that we run on. */
const TICKS = 100

const OURS = 'stillpoint'
const PLAIN = 'stillpoint without native help'
const QSD = 'qemu-storage-daemon'
const PULLED = 'stillpoint, pulled from'
const QSD_PULLED = 'qemu-storage-daemon, pulled from'

interface Served {
  readonly pid: number
  readonly uri: string
}

type Start = (stack: AsyncDisposableStack, folder: string, image: string) => Promise<Served>

const raw = (node: string, path: string) =>
  `driver=raw,node-name=${node},file.driver=file,file.filename=${path},discard=unmap,file.discard=unmap`

interface DaemonState {
  readonly env?: Readonly<Record<string, string>>
  /** The disk's clients write through a copy-before-write filter, and what it keeps is exported. */
  readonly pulled?: boolean
}

/** A daemon, with a bitmap on the disk that records. */
const daemon =
  (name: keyof typeof servers, { env, pulled = false }: DaemonState = {}): Start =>
  async (stack, folder, image) => {
    const [socket, control] = [join(folder, 'nbd.sock'), join(folder, 'qmp.sock')]
    const nodes = pulled ? pulledNodes(image, await scratchFor(stack, folder)) : [raw('disk', image)]
    const monitor = ['--chardev', `socket,id=c,path=${control},server=on,wait=off`, '--monitor', 'chardev=c']
    const view = pulled ? ['--export', 'type=nbd,id=view,node-name=view,name=view'] : []
    const options = [...daemonOptions(socket, nodes), ...view, ...monitor]
    const pid = await startProgram(stack, [...servers[name], ...options], control, env)
    await using qmp = await monitorAt(control)
    await qmp.execute('block-dirty-bitmap-add', { node: pulled ? 'image' : 'disk', name: 'b', granularity: 64 * KiB })
    return { pid, uri: `nbd+unix:///disk?socket=${socket}` }
  }

/** Where somebody has just been, to see whether it listens: qemu-storage-daemon cuts off, or refuses, who comes before it has noticed that they left. */
async function monitorAt(control: string): Promise<QmpClient> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await QmpClient.connect(control)
    } catch (error) {
      if (attempt === 100) throw error
      await sleep(20)
    }
  }
}

/** As a pull backup has them: the filter over the disk, and the view that clients read. */
const pulledNodes = (image: string, scratch: string) => [
  raw('image', image),
  raw('scratch', scratch),
  'driver=copy-before-write,node-name=disk,file=image,target=scratch',
  'driver=snapshot-access,node-name=view,file=disk',
]

async function scratchFor(stack: AsyncDisposableStack, folder: string) {
  const scratch = join(folder, 'scratch.raw')
  await writeFile(scratch, '')
  await truncate(scratch, SIZE)
  stack.defer(() => rm(scratch))
  return scratch
}

const program =
  (command: (socket: string, image: string) => readonly string[]): Start =>
  async (stack, folder, image) => {
    const socket = join(folder, 'nbd.sock')
    return { pid: await startProgram(stack, command(socket, image), socket), uri: `nbd+unix:///?socket=${socket}` }
  }

const contenders: Readonly<Record<string, Start>> = {
  [OURS]: daemon('stillpoint'),
  [PLAIN]: daemon('stillpoint', { env: { STILLPOINT_NATIVE: 'off' } }),
  'qemu-nbd': program((socket, image) => ['qemu-nbd', '-f', 'raw', '-t', '-e', '0', '-k', socket, image]),
  [PULLED]: daemon('stillpoint', { pulled: true }),
  [QSD]: daemon(QSD),
  [QSD_PULLED]: daemon(QSD, { pulled: true }),
  nbdkit: program((socket, image) => ['nbdkit', '-f', '-U', socket, 'file', image]),
}
const NAMES = Object.keys(contenders)

/** What is done, how often in a second, and how many times in all. `round`: another one asks for other places. */
type Work = (uri: string, round: number) => Promise<{ iops: number; count: number }>

const load =
  (what: Omit<SteadyLoad, 'seconds' | 'round'>): Work =>
  (uri, round) =>
    steady(uri, { ...what, seconds: 1, round })

const copy = (connections: number) => load({ rw: 'read', block: 256 * KiB, depth: 16, size: SIZE, connections })
const small = (rw: 'randread' | 'randwrite', depth: number) => load({ rw, block: 4 * KiB, depth, size: BUSY })

const byNbdcopy: Work = async uri => {
  const begun = performance.now()
  await run('nbdcopy', ['--connections=4', '--request-size=262144', uri, 'null:'])
  const [seconds, count] = [(performance.now() - begun) / 1000, SIZE / (256 * KiB)]
  return { iops: count / seconds, count }
}

const byFio =
  (rw: 'randread' | 'randwrite', depth: number): Work =>
  uri =>
    fioResult(uri, { rw, block: 4 * KiB, depth, size: BUSY, seconds: 1 })

interface Workload {
  readonly title: string
  readonly work: Work
  /** The least that ours must be of nbdkit's; without it there is no goal, because it is the client that is measured for the most part. */
  readonly overNbdkit?: number
  /** How often it is done before it is measured: it takes some seconds until Node has compiled all that it needs, and a server runs for months. */
  readonly warm?: number
}

/** One at a time, what matters is how soon everybody wakes up, and fio is woken sooner than a thread of Node. nbdcopy has two threads here. */
const workloads: readonly Workload[] = [
  { title: 'copy out, 256 KiB, 4 connections', work: copy(4), overNbdkit: 1.5 },
  { title: 'copy out, 256 KiB, 1 connection', work: copy(1), overNbdkit: 1.5 },
  { title: 'read 4 KiB, 1 at a time (fio)', work: byFio('randread', 1), overNbdkit: 1.2, warm: 8 },
  { title: 'read 4 KiB, 16 at a time', work: small('randread', 16), overNbdkit: 1.5 },
  { title: 'read 4 KiB, 64 at a time', work: small('randread', 64), overNbdkit: 1.5 },
  { title: 'write 4 KiB, 64 at a time', work: small('randwrite', 64), overNbdkit: 1.5 },
  { title: 'nbdcopy, 4 connections', work: byNbdcopy, overNbdkit: 1.5, warm: 8 },
  { title: 'fio, read 4 KiB, 64 at a time', work: byFio('randread', 64) },
  { title: 'fio, write 4 KiB, 64 at a time', work: byFio('randwrite', 64) },
]

interface Measured {
  readonly rate: number
  /** Of the server's, in microseconds for each request. */
  readonly cpu: number
}

export const nbd: Part = {
  name: 'nbd',
  title: 'raw images over NBD, as a multiple of qemu-nbd (median, least to most)',
  async measure(report, { rounds, folder }) {
    report.begin(this.title)
    const image = join(folder, 'disk.raw')
    await makeImage(image)
    const rows: { readonly workload: Workload; readonly rates: number[][]; readonly cpus: number[][] }[] = []
    for (const workload of workloads) {
      const measured = await inTurns(workload, rounds, folder, image)
      rows.push({
        workload,
        rates: NAMES.map((_, at) => measured.map(round => round[at]!.rate)),
        cpus: NAMES.map((_, at) => measured.map(round => round[at]!.cpu)),
      })
    }
    await rm(image)
    const ratios = (row: (typeof rows)[number], name: string, base: string) => {
      const [ours, theirs] = [row.rates[NAMES.indexOf(name)]!, row.rates[NAMES.indexOf(base)]!]
      return ours.map((rate, round) => rate / theirs[round]!)
    }
    const titles = rows.map(({ workload }) => workload.title)
    report.table(
      ['', ...NAMES],
      rows.map((row, at) => [titles[at]!, ...NAMES.map(name => spread(ratios(row, name, 'qemu-nbd')))]),
    )
    report.remark('Processor time of the server for a request, in microseconds (median):')
    report.table(
      ['', ...NAMES],
      rows.map((row, at) => [titles[at]!, ...row.cpus.map(cpus => digits(median(cpus)))]),
    )
    for (const row of rows) judge(report, row.workload, (name, base) => ratios(row, name, base))
    report.plot(
      'ratios',
      plotRatios(
        'Requests a second, as a multiple of qemu-nbd',
        NAMES,
        rows.map((row, at) => ({ title: titles[at]!, bars: NAMES.map(name => bar(ratios(row, name, 'qemu-nbd'))) })),
      ),
    )
  },
}

const bar = (values: readonly number[]) => ({ value: median(values), least: Math.min(...values), most: Math.max(...values) })

const SHORT = { [OURS]: 'ours', [PULLED]: 'ours, pulled from', [PLAIN]: 'ours without help' } as const

function judge(report: Report, { title, overNbdkit }: Workload, ratios: (name: string, base: string) => number[]) {
  if (overNbdkit === undefined) return
  for (const [name, base, least] of [
    [OURS, 'nbdkit', overNbdkit],
    [OURS, QSD, 1.5],
    [PULLED, QSD_PULLED, 1.5],
    [PLAIN, 'qemu-nbd', 1],
  ] as const) {
    const values = ratios(name, base)
    report.add({
      what: `${title}: ${SHORT[name]} / ${base}`,
      value: spread(values),
      goal: `>= ${least}`,
      reached: median(values) >= least,
    })
  }
}

/**
 * In requests as guests make them, so that the page cache has it in pieces of that size. Of a file that was written by one call it has pieces of 2 MiB, and
 * for each write of 4 KiB ext4 goes over all 512 blocks of one: then that is measured, and no server is much faster than another.
 */
async function makeImage(path: string) {
  await using image = await open(path, 'w')
  const piece = Buffer.alloc(64 * KiB)
  for (let at = 0; at < SIZE; at += piece.length) await image.write(randomFillSync(piece), 0, piece.length, at)
  await image.sync()
}

/** All of them one after the other, in another order each time; what they hold is let go of before the next one begins. */
async function inTurns({ work, warm = 1 }: Workload, rounds: number, folder: string, image: string): Promise<Measured[][]> {
  const all: Measured[][] = []
  for (let round = 0; round < rounds; round++) {
    const measured: Measured[] = []
    for (let turn = 0; turn < NAMES.length; turn++) {
      const at = (turn + round) % NAMES.length
      await using stack = new AsyncDisposableStack()
      for (const name of ['nbd.sock', 'qmp.sock']) stack.defer(() => rm(join(folder, name), { force: true }))
      const { pid, uri } = await contenders[NAMES[at]!]!(stack, folder, image)
      for (let times = 0; times < warm; times++) await work(uri, 0)
      const before = await cpuOf(pid)
      const { iops: rate, count } = await work(uri, 1)
      measured[at] = { rate, cpu: ((await cpuOf(pid)) - before) / count }
    }
    all.push(measured)
  }
  return all
}

/** What a process has had of the processor so far, in microseconds. */
async function cpuOf(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8')
  // Behind the name, which is in brackets and may hold anything: utime and stime are the 14th and 15th field of all.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return ((Number(fields[11]) + Number(fields[12])) / TICKS) * 1e6
}
