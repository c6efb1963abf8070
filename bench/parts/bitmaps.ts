// How long marks, searches, merges and checkpoints of dirty bitmaps take: of the processor, so that what else runs on the machine does not count.

import { strict as assert } from 'node:assert'
import { bitmapAdd } from '../../src/bitmaps/actions.ts'
import { BitmapSet } from '../../src/bitmaps/bitmap-set.ts'
import { DirtyBitmap } from '../../src/bitmaps/dirty-bitmap.ts'
import { Graph } from '../../src/block/graph.ts'
import { Permission } from '../../src/block/permissions.ts'
import { drivers } from '../../src/drivers/index.ts'
import { transact } from '../../src/transactions/transact.ts'
import { digits, median, type Part, type Report } from '../report.ts'
import { checkpointsOfAMachine } from './checkpoint.ts'

const TIB = 2 ** 40
const SIZE = 16 * TIB
const GRANULARITY = 65536

const rss = () => process.memoryUsage().rss / 2 ** 20

const cpuMs = () => {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1000
}

/** The median of several runs, in ms; `prepare` is not counted. */
function timed<T>(prepare: () => T, act: (prepared: T) => void, runs = 9) {
  return median(
    Array.from({ length: runs }, () => {
      const prepared = prepare()
      const begun = cpuMs()
      act(prepared)
      return cpuMs() - begun
    }),
  )
}

const nothing = () => {}
const fresh = (granularity = GRANULARITY) => new DirtyBitmap({ size: SIZE, granularity })

/** Every granule that `is` says. */
function filled(is: (granule: number) => boolean, granularity = GRANULARITY) {
  const bitmap = fresh(granularity)
  for (let granule = 0; granule * granularity < SIZE; granule++) if (is(granule)) bitmap.mark(granule * granularity, 1)
  return bitmap
}

function whole(granularity = GRANULARITY) {
  const bitmap = fresh(granularity)
  bitmap.mark(0, SIZE)
  return bitmap
}

function sparse(count: number, granularity = GRANULARITY) {
  const bitmap = fresh(granularity)
  for (let index = 0; index < count; index++) bitmap.mark((index * SIZE) / count + 12345, 4096)
  return bitmap
}

const some = () => sparse(10_000)

const merge = (into: () => DirtyBitmap, from: DirtyBitmap) => timed(into, bitmap => bitmap.mergeFrom(from), 3)

export const bitmaps: Part = {
  name: 'bitmaps',
  title: 'dirty bitmaps: marks, searches, merges, checkpoints',
  async measure(report, { folder }) {
    const add = (what: string, value: number, unit: string, goal?: number) =>
      report.add({
        what,
        value: `${digits(value)} ${unit}`,
        ...(goal !== undefined && { goal: `< ${goal} ${unit}`, reached: value < goal }),
      })
    report.begin('marks, by four recording bitmaps of a disk of 16 TiB at 64 KiB')
    marks(add)
    report.begin('searches and changes, one bitmap of 16 TiB at 64 KiB')
    searches(add)
    report.begin('merges, two bitmaps of 16 TiB, at 64 KiB where nothing else is said')
    merges(add)
    report.begin('checkpoints')
    await checkpoints(add)
    const { beyond, all } = await checkpointsOfAMachine(folder)
    const of = `${beyond.length} checkpoints of a machine with 16 disks in qcow2, all written`
    add(`${of}: writes held beyond those in flight`, median(beyond), 'ms', 10)
    add('  the longest of them', Math.max(...beyond), 'ms')
    add('  those in flight included', median(all), 'ms')
    memory(report)
  },
}

type Add = (what: string, value: number, unit: string, goal?: number) => void

function marks(add: Add) {
  const set = new BitmapSet({ nodeName: 'disk', size: SIZE })
  for (const name of ['a', 'b', 'c', 'd']) set.add({ name })
  const count = 1_000_000
  const offsets = Float64Array.from({ length: count }, () => Math.floor(Math.random() * (SIZE / 4096)) * 4096)
  const all = (step: (index: number) => number, length: number) => () => {
    for (let index = 0; index < count; index++) set.mark(step(index), length)
  }
  const clean = () => {
    for (const bitmap of set) bitmap.clear()
  }
  const ns = (step: (index: number) => number, length: number, prepare = nothing) =>
    (timed(prepare, all(step, length), 5) * 1e6) / count
  add(
    '4 KiB anywhere in 1 GiB',
    ns(index => offsets[index]! % 2 ** 30, 4096),
    'ns',
    200,
  )
  add(
    '4 KiB in order',
    ns(index => (index * 4096) % SIZE, 4096),
    'ns',
    200,
  )
  add(
    '4 KiB anywhere in 16 TiB (each a miss of the processor’s caches)',
    ns(index => offsets[index]!, 4096),
    'ns',
    200,
  )
  add(
    '256 KiB in order, clean before',
    ns(index => (index * 262144) % SIZE, 262144, clean),
    'ns',
    200,
  )
}

function searches(add: Add) {
  const empty = fresh()
  const full = whole()
  const alternating = filled(granule => granule % 2 === 0)
  add(
    'next dirty, empty',
    timed(nothing, () => void empty.nextDirty(0, SIZE)),
    'ms',
    1,
  )
  add(
    'next clean, all dirty',
    timed(nothing, () => void full.nextClean(0, SIZE)),
    'ms',
  )
  add(
    'mark all of it',
    timed(fresh, bitmap => bitmap.mark(0, SIZE)),
    'ms',
  )
  add(
    'reset all of it',
    timed(whole, bitmap => bitmap.reset(0, SIZE)),
    'ms',
  )
  add(
    'clear',
    timed(whole, bitmap => bitmap.clear()),
    'ms',
  )
  add(
    'copy, 10,000 dirty granules',
    timed(some, bitmap => void bitmap.copy()),
    'ms',
  )
  add(
    'truncate by one granule, 10,000 dirty',
    timed(some, bitmap => bitmap.truncate(SIZE + GRANULARITY)),
    'ms',
  )
  add(
    'SHA-256',
    timed(some, bitmap => void bitmap.sha256(), 3),
    'ms',
  )
  let ranges = 0
  const walk = () => {
    ranges = 0
    for (const range of alternating.dirtyRanges({ offset: 0, length: TIB })) ranges += range.length > 0 ? 1 : 0
  }
  add('a range of dirtyRanges, every other granule dirty', (timed(nothing, walk, 3) * 1e6) / ranges, 'ns')
}

function merges(add: Add) {
  const alternating = filled(granule => granule % 2 === 0)
  const coarse = () => fresh(1 << 20)
  add('empty into empty', merge(fresh, fresh()), 'ms', 50)
  add('10,000 dirty granules into 10,000', merge(() => sparse(10_000), sparse(9_999)), 'ms', 50) // prettier-ignore
  add('all dirty into empty', merge(fresh, whole()), 'ms', 50)
  add('all dirty into all dirty', merge(whole, whole()), 'ms', 50)
  add('every other granule into empty', merge(fresh, alternating), 'ms', 50)
  add('every other granule into every third', merge(() => filled(granule => granule % 3 === 0), alternating), 'ms', 50) // prettier-ignore
  add('every other granule into 4 KiB, which then has 256 MiB', merge(() => fresh(4096), alternating), 'ms') // prettier-ignore
  add('every other granule into 1 MiB', merge(coarse, alternating), 'ms', 50)
  add('every third granule of 1 MiB into 64 KiB, which then has 32 MiB', merge(fresh, filled(granule => granule % 3 === 0, 1 << 20)), 'ms') // prettier-ignore
  add('all dirty into 1 MiB', merge(coarse, whole()), 'ms', 50)
  add('all dirty of 1 MiB into 64 KiB', merge(fresh, whole(1 << 20)), 'ms', 50)
}

/** A bitmap more on each of 16 disks of 16 TiB, all in one moment; each has three that record, and writes come to all of them. */
async function checkpoints(add: Add) {
  await using graph = new Graph(drivers)
  const disks = await Promise.all(
    Array.from({ length: 16 }, (_, index) => graph.add({ driver: 'null-co', 'node-name': `disk${index}`, size: SIZE })),
  )
  const edges = disks.map(disk =>
    graph.attach(disk, {
      description: 'the bench',
      perm: Permission.write,
      shared: Permission.write | Permission.consistentRead,
    }),
  )
  for (const disk of disks) for (const name of ['a', 'b', 'c']) disk.bitmaps.add({ name })
  let writing = true
  const writers = edges.map(async (edge, index) => {
    const data = Buffer.alloc(4096)
    for (let at = index; writing; at = (at * 1_103_515_245 + 12_345) % (SIZE / 4096)) {
      await edge.write(at * 4096, data)
      await new Promise(setImmediate)
    }
  })
  const held: number[] = []
  for (let round = 0; round < 15; round++) {
    const actions = disks.map(disk => bitmapAdd(() => disk.bitmaps, { name: `checkpoint${round}` }))
    await transact(actions, async commits => {
      let begun: number | undefined
      await graph.drained(disks, async () => {
        begun = performance.now() // nothing is in flight any more
        await commits()
      })
      assert(begun !== undefined)
      held.push(performance.now() - begun)
    })
  }
  writing = false
  await Promise.all(writers)
  for (const edge of edges) await graph.detach(edge)
  add('a checkpoint over 16 disks holds writes, beyond those in flight', median(held), 'ms', 10)
}

function memory(report: Report) {
  report.begin('memory')
  globalThis.gc?.()
  const before = rss()
  const bitmaps = Array.from({ length: 100 }, () => fresh())
  for (const bitmap of bitmaps) {
    bitmap.nextDirty(0, SIZE)
    bitmap.mark(0, 4096)
    bitmap.mergeFrom(bitmaps[0]!)
  }
  report.add({ what: 'a bitmap of 16 TiB at 64 KiB with one dirty granule', value: `${digits((rss() - before) / 100)} MiB` })
}
