// DirtyBitmap by itself: merges across granularities when much is dirty, and what a peer or an image says of a bitmap's bytes.

import t from 'tap'
import { DirtyBitmap } from '../../src/bitmaps/dirty-bitmap.ts'
import { generator } from '../helpers/random-bytes.ts'

const SIZE = 2 ** 30 - 1536

/** Dirty in runs of up to `longest` granules, with gaps as long. */
function striped(granularity: number, longest: number, seed: number) {
  const bitmap = new DirtyBitmap({ size: SIZE, granularity })
  const next = generator(seed)
  for (let granule = 0; granule * granularity < SIZE; granule += 1 + (next() % longest)) {
    const end = granule + 1 + (next() % longest)
    bitmap.mark(granule * granularity, Math.min((end - granule) * granularity, SIZE - granule * granularity))
    granule = end
  }
  return bitmap
}

t.test('a merge into another granularity marks every granule that a dirty byte is in, however much is dirty', async t => {
  for (const [from, into] of [
    [512, 1024],
    [512, 65536],
    [1024, 512],
    [4096, 512],
    [512, 2 ** 31],
  ] as const) {
    for (const longest of [2, 3000]) {
      const source = striped(from, longest, from + into)
      const target = new DirtyBitmap({ size: SIZE, granularity: into })
      const expected = new DirtyBitmap({ size: SIZE, granularity: into })
      target.mark(0, 1)
      expected.mark(0, 1)
      for (const { offset, length } of source.dirtyRanges({ offset: 0, length: SIZE })) expected.mark(offset, length)
      target.mergeFrom(source)
      t.equal(target.count, expected.count, `${from} into ${into}, ${source.count / from} granules`)
      t.equal(target.sha256(), expected.sha256())
    }
  }
})

t.test('a merge takes what lies within the target when the source is of another size', async t => {
  for (const granularity of [512, 4096]) {
    const source = new DirtyBitmap({ size: 100_000, granularity })
    source.mark(0, 100_000)
    const target = new DirtyBitmap({ size: 10_001, granularity: 512 })
    target.mergeFrom(source)
    t.equal(target.count, 20 * 512)
    const longer = new DirtyBitmap({ size: 200_000, granularity: 512 })
    longer.mergeFrom(source)
    t.ok(longer.nextClean(0, 200_000) >= 100_000 && longer.count <= 102_400)
  }
})

t.test('a copy has the same marks, and goes its own way', async t => {
  const bitmap = striped(512, 40, 1)
  const before = bitmap.sha256()
  const copy = bitmap.copy()
  t.same([copy.name, copy.recording, copy.sha256()], [undefined, false, before])
  bitmap.mark(0, SIZE)
  copy.reset(0, SIZE / 2)
  t.not(copy.sha256(), before)
  t.equal(bitmap.nextClean(0, SIZE), SIZE)
  bitmap.restore(copy)
  t.equal(bitmap.sha256(), copy.sha256())
})

t.test('its bytes can be read and added in any parts', async t => {
  const bitmap = striped(512, 40, 2)
  for (const step of [4096, 65536, 1000]) {
    const other = new DirtyBitmap({ size: SIZE, granularity: 512 })
    for (let at = 0; at < bitmap.byteLength; at += step) {
      other.addBytes(at, bitmap.readBytes(at, Math.min(step, bitmap.byteLength - at)))
    }
    t.equal(other.sha256(), bitmap.sha256())
    t.equal(other.count, bitmap.count)
  }
  t.throws(() => bitmap.addBytes(bitmap.byteLength, Buffer.alloc(1)), RangeError)
})
