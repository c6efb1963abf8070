// The heat map of disks of any size, over bitmaps in memory.

import fc from '../helpers/property.ts'
import t from 'tap'
import { CheckpointInconsistent } from '../../src/base/errors.ts'
import { DirtyBitmap } from '../../src/bitmaps/dirty-bitmap.ts'
import type { Checkpoints } from '../../src/machines/checkpoints.ts'
import type { Disk } from '../../src/machines/machine.ts'
import { HeatMaps } from '../../src/web/heat-map.ts'

const GRANULE = 65536

const diskOf = (size: number) => ({ name: 'root', node: { size } }) as Disk

/** Checkpoints of one disk, each with its bitmaps or why there are none. */
const checkpointsOf = (all: Readonly<Record<string, readonly DirtyBitmap[] | Error>>) =>
  ({
    list: Object.keys(all).map(name => ({ name, disks: ['root'] })),
    changesIn: ({ name }: { name: string }) => {
      const found = all[name]!
      if (found instanceof Error) throw found
      return found
    },
  }) as unknown as Checkpoints

const bitmap = (size: number, granularity = GRANULE) => new DirtyBitmap({ size, granularity, disabled: true })

t.test('every dirty granule is counted once, in the cell it lies in', async () => {
  const sizes = fc.oneof(fc.integer({ min: 1, max: 600 * GRANULE }), fc.integer({ min: 1, max: 2 ** 44 }))
  const marks = fc.array(
    fc.record({
      bitmap: fc.nat(2),
      at: fc.double({ min: 0, max: 1, noNaN: true }),
      length: fc.integer({ min: 1, max: 400 * GRANULE }),
    }),
    { maxLength: 12 },
  )
  await fc.assert(
    fc.asyncProperty(sizes, marks, fc.constantFrom(GRANULE, 4 * GRANULE), async (size, marks, granularity) => {
      const bitmaps = [bitmap(size), bitmap(size), bitmap(size, granularity)]
      const dirty = new Set<number>()
      for (const { bitmap, at, length } of marks) {
        const offset = Math.min(size - 1, Math.floor(at * size))
        const end = Math.min(size, offset + length)
        bitmaps[bitmap]!.mark(offset, end - offset)
        const grain = bitmap === 2 ? granularity : GRANULE
        const last = Math.min(Math.ceil(size / GRANULE), (Math.ceil(end / grain) * grain) / GRANULE)
        for (let granule = (Math.floor(offset / grain) * grain) / GRANULE; granule < last; granule++) dirty.add(granule)
      }
      const map = await new HeatMaps().of(diskOf(size), checkpointsOf({ a: bitmaps }), 12)
      const [row] = map.rows
      const cells = Array.from({ length: Math.ceil(map.granules / map.each) }, () => 0)
      for (const granule of dirty) cells[Math.floor(granule / map.each)]!++
      if (cells.length > 256 || JSON.stringify(row!.cells) !== JSON.stringify(cells))
        throw new Error(`${row!.cells?.join()} and not ${cells.join()}`)
      if (row!.changed !== dirty.size * GRANULE) throw new Error(`${row!.changed} bytes`)
    }),
    { numRuns: 150 },
  )
})

t.test('a bitmap of 2^30 granules is counted while others have their turn, and again only when it has changed', async t => {
  const size = 2 ** 46
  const [all, more] = [bitmap(size), bitmap(size)]
  for (let at = 0; at < 256; at++) all.mark((at * size) / 256 + at * GRANULE, (at + 1) * GRANULE)
  more.mark(size - 5, 5)
  const heat = new HeatMaps()
  const [disk, checkpoints] = [diskOf(size), checkpointsOf({ old: [more], new: [all, more] })]
  let turns = 0
  let isOver = false
  const count = () => {
    turns++
    if (!isOver) setImmediate(count)
  }
  setImmediate(count)
  const { rows } = await heat.of(disk, checkpoints, 12)
  isOver = true
  t.ok(turns > 16, `${turns} turns`)
  t.same(
    rows.map(({ checkpoint }) => checkpoint),
    ['new', 'old'],
    'the newest first',
  )
  t.same(
    rows[0]!.cells,
    Array.from({ length: 256 }, (_, at) => (at < 255 ? at + 1 : 256 + 1)),
  )
  const again = await heat.of(disk, checkpoints, 12)
  t.equal(again.rows[0]!.cells, rows[0]!.cells, 'the very same')
  more.mark(0, 1)
  t.equal((await heat.of(disk, checkpoints, 12)).rows[1]!.cells![0], 1)
  more.clear()
  more.mark(size - 5, 5)
  more.mark(size / 2, 1)
  t.same((await heat.of(disk, checkpoints, 12)).rows[1]!.cells![0], 0, 'as many as before, elsewhere')
  t.equal((await heat.of(disk, checkpoints, 1)).rows.length, 1)
  t.same((await heat.of(disk, checkpoints, 0)).rows, [])
})

t.test('what is not known is said, and is no zero', async t => {
  const checkpoints = checkpointsOf({ a: new CheckpointInconsistent('checkpoint inconsistent: missing'), b: [bitmap(GRANULE)] })
  const { rows } = await new HeatMaps().of(diskOf(GRANULE), checkpoints, 12)
  t.same(rows, [
    { checkpoint: 'b', cells: [0], changed: 0 },
    { checkpoint: 'a', problem: 'checkpoint inconsistent: missing' },
  ])
  await t.rejects(new HeatMaps().of(diskOf(GRANULE), checkpointsOf({ a: new TypeError('a bug') }), 12), TypeError)
})
