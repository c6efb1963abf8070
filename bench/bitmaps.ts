// How long marks, searches and merges of dirty bitmaps take, against the goals: `scripts/on-node-24 dist/bench/bitmaps.js`.

import { BitmapSet } from '../src/bitmaps/bitmap-set.ts'
import { DirtyBitmap } from '../src/bitmaps/dirty-bitmap.ts'

const TIB = 2 ** 40
const SIZE = 16 * TIB
const GRANULARITY = 65536

const rss = () => process.memoryUsage().rss / 2 ** 20

/** Of the processor, so that what else runs on the machine does not count. */
const cpuMs = () => {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1000
}

/** The median of several runs, in ms; `prepare` is not counted. */
function median<T>(prepare: () => T, act: (prepared: T) => void, runs = 9) {
  const times = Array.from({ length: runs }, () => {
    const prepared = prepare()
    const begun = cpuMs()
    act(prepared)
    return cpuMs() - begun
  })
  return times.sort((a, b) => a - b)[runs >> 1]!
}

const print = (what: string, value: number, unit: string, goal?: string) =>
  console.log(`${what.padEnd(66)} ${value.toFixed(value < 10 ? 3 : 1).padStart(9)} ${unit}${goal ? `   goal: ${goal}` : ''}`)

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

console.log('marks, by four recording bitmaps of a disk of 16 TiB at 64 KiB')
{
  const set = new BitmapSet({ nodeName: 'disk', size: SIZE })
  for (const name of ['a', 'b', 'c', 'd']) set.add({ name })
  const count = 1_000_000
  const offsets = Float64Array.from({ length: count }, () => Math.floor(Math.random() * (SIZE / 4096)) * 4096)
  const all = (step: (index: number) => number, length: number) => () => {
    for (let index = 0; index < count; index++) set.mark(step(index), length)
  }
  const ns = (act: () => void, prepare = () => {}) => (median(prepare, act, 5) * 1e6) / count
  const within = (index: number) => offsets[index]! % 2 ** 30
  print('4 KiB anywhere in 1 GiB', ns(all(within, 4096)), 'ns', '< 200 ns')
  print('4 KiB in order', ns(all(index => (index * 4096) % SIZE, 4096)), 'ns', '< 200 ns')
  print(
    '4 KiB anywhere in 16 TiB (each a miss of the processor’s caches)',
    ns(all(index => offsets[index]!, 4096)),
    'ns',
    '< 200 ns',
  )
  const clean = () => {
    for (const bitmap of set) bitmap.clear()
  }
  print(
    '256 KiB in order, clean before',
    ns(
      all(index => (index * 262144) % SIZE, 262144),
      clean,
    ),
    'ns',
    '< 200 ns',
  )
}

console.log('\nsearches and changes, one bitmap of 16 TiB at 64 KiB')
{
  const empty = fresh()
  print('next dirty, empty', median(() => {}, () => void empty.nextDirty(0, SIZE)), 'ms', '< 1 ms') // prettier-ignore
  const all = whole()
  print('next clean, all dirty', median(() => {}, () => void all.nextClean(0, SIZE)), 'ms') // prettier-ignore
  print(
    'mark all of it',
    median(fresh, bitmap => bitmap.mark(0, SIZE)),
    'ms',
  )
  print(
    'reset all of it',
    median(whole, bitmap => bitmap.reset(0, SIZE)),
    'ms',
  )
  print(
    'clear',
    median(whole, bitmap => bitmap.clear()),
    'ms',
  )
  print('copy, 10,000 dirty granules', median(() => sparse(10_000), bitmap => void bitmap.copy()), 'ms') // prettier-ignore
  print('truncate by one granule, 10,000 dirty', median(() => sparse(10_000), bitmap => bitmap.truncate(SIZE + GRANULARITY)), 'ms') // prettier-ignore
  print('SHA-256', median(() => sparse(10_000), bitmap => void bitmap.sha256(), 3), 'ms') // prettier-ignore
  const alternating = filled(granule => granule % 2 === 0)
  let ranges = 0
  const took = median(() => {}, () => { for (const range of alternating.dirtyRanges({ offset: 0, length: TIB })) ranges += range.length > 0 ? 1 : 0 }, 3) // prettier-ignore
  print('a range of dirtyRanges, every other granule dirty', (took * 1e6) / (ranges / 3), 'ns')
}

console.log('\nmerges, two bitmaps of 16 TiB at 64 KiB')
{
  const merge = (into: () => DirtyBitmap, from: DirtyBitmap) => median(into, bitmap => bitmap.mergeFrom(from), 3)
  print('empty into empty', merge(fresh, fresh()), 'ms', '< 50 ms')
  print(
    '10,000 dirty granules into 10,000',
    merge(() => sparse(10_000), sparse(9_999)),
    'ms',
    '< 50 ms',
  )
  print('all dirty into empty', merge(fresh, whole()), 'ms', '< 50 ms')
  print('all dirty into all dirty', merge(whole, whole()), 'ms', '< 50 ms')
  const alternating = filled(granule => granule % 2 === 0)
  print('every other granule into empty', merge(fresh, alternating), 'ms', '< 50 ms')
  print(
    'every other granule into 4 KiB',
    merge(() => fresh(4096), alternating),
    'ms',
  )
  print(
    'every other granule into 1 MiB',
    merge(() => fresh(1 << 20), alternating),
    'ms',
  )
  print('every third granule of 1 MiB into 64 KiB', merge(fresh, filled(granule => granule % 3 === 0, 1 << 20)), 'ms') // prettier-ignore
  print(
    'all dirty into 1 MiB',
    merge(() => fresh(1 << 20), whole()),
    'ms',
  )
  print('all dirty of 1 MiB into 64 KiB', merge(fresh, whole(1 << 20)), 'ms')
}

console.log('\nmemory')
{
  globalThis.gc?.()
  const before = rss()
  const bitmaps = Array.from({ length: 100 }, () => fresh())
  for (const bitmap of bitmaps) {
    bitmap.nextDirty(0, SIZE)
    bitmap.mark(0, 4096)
    bitmap.mergeFrom(bitmaps[0]!)
  }
  print('a bitmap of 16 TiB at 64 KiB with one dirty granule', (rss() - before) / 100, 'MiB')
}
