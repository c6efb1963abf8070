// Increments of a large disk of which 1 % has changed, and pushes of one that has not.
//
// A push cannot do with less than to read and hash what has changed; what is new it compresses and stores too. So an increment whose bytes the repository
// has, as they were copied, or have come back, is compared with reading and hashing them, and one of new bytes with compressing and storing them.

import { createHash, randomBytes } from 'node:crypto'
import { mkdir, open, readFile, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { NbdClient } from 'nbd-client-ts'
import { formatSize } from '../../src/base/units.ts'
import { find } from '../demo/tools.ts'
import { measured } from '../measured.ts'
import { startDaemon } from '../push-daemon.ts'
import { makeRealImage } from '../real-data.ts'
import { digits, median, spread, type Part, type Report } from '../report.ts'

const MiB = 2 ** 20
const GiB = 2 ** 30
const LARGE = 100 * GiB
/** One piece of 1 MiB in each. */
const STRIDE = 100 * MiB
const CHANGED = Math.ceil(LARGE / STRIDE) * MiB
const SPARSE = 1024 * GiB

export const increments: Part = {
  name: 'increments',
  title: 'increments of a disk of 100 GiB of which 1 % has changed, in 1024 places; unchanged disks',
  async measure(report, { rounds, folder }) {
    report.begin(this.title)
    await using stack = new AsyncDisposableStack()
    const [large, sparse, place] = [join(folder, 'large.raw'), join(folder, 'sparse.raw'), join(folder, 'increments')]
    for (const [path, size] of [
      [large, LARGE],
      [sparse, SPARSE],
    ] as const) {
      await writeFile(path, randomBytes(MiB))
      await truncate(path, size)
    }
    await mkdir(place)
    const daemon = await startDaemon(stack, place, { disks: { root: large }, more: { sparse }, encrypted: false })
    await onePercent(report, { daemon, large, socket: join(place, 'nbd.sock'), rounds, folder })
    await daemon.push('sparse')
    for (const [what, since] of [
      ['an unchanged disk of 1 TiB, by its bitmap', 'auto'],
      ['the same, compared', 'full'],
    ] as const) {
      const { seconds } = await daemon.push('sparse', since)
      report.add({ what, value: `${digits(seconds)} s`, goal: '< 2 s', reached: seconds < 2 })
    }
  },
}

interface Large {
  readonly daemon: Awaited<ReturnType<typeof startDaemon>>
  readonly large: string
  /** Of its export. */
  readonly socket: string
  readonly rounds: number
  readonly folder: string
}

async function onePercent(report: Report, { daemon, large, socket, rounds, folder }: Large) {
  await daemon.push()
  const real = join(folder, 'changes.raw')
  await makeRealImage(real, CHANGED)
  const known: number[] = []
  const fresh: number[] = []
  const beside: number[] = []
  const took: { known: number[]; fresh: number[] } = { known: [], fresh: [] }
  for (let round = 0; round < rounds; round++) {
    const same = randomBytes(MiB)
    await change(socket, () => same)
    const before = await bytesRead(daemon.pid)
    const moved = await daemon.push()
    beside.push((await bytesRead(daemon.pid)) - before - CHANGED)
    known.push(moved.seconds / (await hashSeconds(large)))
    took.known.push(moved.seconds)

    await makeNew(real, round + 1)
    await using bytes = await open(real)
    await change(socket, async number => (await bytes.read(same, 0, MiB, number * MiB)).buffer)
    const added = await daemon.push()
    took.fresh.push(added.seconds)
    if (!find('zstd')) continue
    const alone = await measured('zstd', ['-1', '-T0', '-q', '-f', real, '-o', `${real}.zst`], { durable: `${real}.zst` })
    fresh.push(alone.seconds / added.seconds)
  }
  report.add({
    what: `bytes that the repository has (${digits(median(took.known))} s), over reading and hashing them`,
    value: spread(known),
    goal: '<= 1.3',
    reached: median(known) <= 1.3,
  })
  const what = `new bytes (${digits(median(took.fresh))} s): zstd -1 -T0 of them`
  if (fresh.length > 0) report.add({ what, value: spread(fresh), goal: '>= 0.91', reached: median(fresh) >= 1 / 1.1 })
  else report.remark('zstd is not installed: nobody compresses what is new.')
  report.add({
    what: 'all that the daemon reads beside those 1 GiB: of the repository, and its sample of clean chunks',
    value: formatSize(Math.max(...beside)),
  })
}

/** By system calls (proc(5), rchar). */
async function bytesRead(pid: number) {
  const [, bytes] = /^rchar: (\d+)$/m.exec(await readFile(`/proc/${pid}/io`, 'utf8'))!
  return Number(bytes)
}

/** As a guest does, and durably. */
async function change(socket: string, bytesOf: (number: number) => Buffer | Promise<Buffer>) {
  await using guest = await NbdClient.connect(`nbd+unix:///bench/root?socket=${socket}`)
  for (let number = 0; number * STRIDE < LARGE; number++) await guest.write(number * STRIDE, await bytesOf(number))
  await guest.flush()
}

/** Data that compresses as it did, and is nowhere else. */
async function makeNew(path: string, mask: number) {
  await using file = await open(path, 'r+')
  const piece = Buffer.alloc(MiB)
  for (let at = 0; at < CHANGED; at += MiB) {
    await file.read(piece, 0, MiB, at)
    for (let byte = 0; byte < MiB; byte++) piece[byte]! ^= mask
    await file.write(piece, 0, MiB, at)
  }
}

/** In one thread that does nothing else. */
async function hashSeconds(path: string) {
  const begun = performance.now()
  await using file = await open(path)
  const piece = Buffer.alloc(MiB)
  const hash = createHash('sha256')
  for (let at = 0; at < LARGE; at += STRIDE) {
    await file.read(piece, 0, MiB, at)
    hash.update(piece)
  }
  hash.digest()
  return (performance.now() - begun) / 1000
}
