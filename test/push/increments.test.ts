// Increments: what is read of the disk, and of the repository.

import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { MemoryTarget } from '../helpers/memory-target.ts'
import { BytesSource, bitmapOf, newRepository, pushDisks, restored, sourceOf } from '../helpers/push-point.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'

const CHUNK = 65536

t.test('an increment by bitmap reads what is dirty, and a sample of what is not', async t => {
  const repository = await newRepository(new MemoryTarget())
  const bytes = randomBytes(400 * CHUNK, 1)
  const first = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes), checkpoint: 'c1' }])
  const changed = Buffer.from(bytes)
  changed.fill(7, 5 * CHUNK + 100, 5 * CHUNK + 200)
  changed.fill(0, 300 * CHUNK, 302 * CHUNK)
  const node = new BytesSource(changed)
  const bitmap = bitmapOf([
    { offset: 5 * CHUNK, length: CHUNK },
    { offset: 300 * CHUNK, length: 2 * CHUNK },
  ])
  const second = await pushDisks(repository, [{ name: 'root', source: node, changes: { bitmap, since: 'c1' }, checkpoint: 'c2' }])
  const [disk] = second.manifest.disks
  t.equal(disk!.read.mode, 'bitmap')
  t.equal(second.manifest.parent, first.key)
  t.equal(disk!.dirty, 3 * CHUNK)
  t.equal(disk!.new, CHUNK)
  t.ok(node.reads.length > 16 && node.reads.length <= 1 + 32, `${node.reads.length} reads`)
  t.ok((await restored(repository, second.key, 'root')).equals(changed))
  t.ok((await restored(repository, first.key, 'root')).equals(bytes), 'and the first is as it was')
})

t.test('an increment by bitmap starts at the restore point of its checkpoint, also when there are newer ones', async t => {
  const repository = await newRepository(new MemoryTarget())
  const one = diskContent(20 * CHUNK, 1)
  const first = await pushDisks(repository, [{ name: 'root', source: sourceOf(one), checkpoint: 'c1' }])
  await pushDisks(repository, [{ name: 'root', source: sourceOf(diskContent(20 * CHUNK, 2)), checkpoint: 'c2' }])
  const three = Buffer.from(one)
  three.fill(3, 0, 10)
  const third = await pushDisks(repository, [
    { name: 'root', source: sourceOf(three), changes: { bitmap: bitmapOf([{ offset: 0, length: 10 }]), since: 'c1' } },
  ])
  t.equal(third.manifest.disks[0]!.read.mode, 'bitmap')
  t.equal(third.manifest.parent, first.key)
  t.ok((await restored(repository, third.key, 'root')).equals(three))
})

const since = (checkpoint: string) => ({ bitmap: bitmapOf([]), since: checkpoint })

t.test('of the earlier restore points a push reads those that its disks start from, and no older ones', async t => {
  const target = new MemoryTarget()
  const repository = await newRepository(target)
  const bytes = diskContent(20 * CHUNK, 1)
  const keys = new Map<string, string>()
  for (let number = 0; number < 40; number++) {
    const checkpoint = `c${number}`
    keys.set(checkpoint, (await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes), checkpoint }])).key)
  }
  for (const [changes, parent, count] of [
    [[since('later'), since('c39'), since('c38')], 'c39', 1],
    [[since('c35'), since('c1')], 'c35', 1 + 16],
    [since('c3'), 'c3', 42],
  ] as const) {
    const before = target.requests.length
    const { manifest } = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes), changes, checkpoint: 'other' }])
    const read = target.requests.slice(before).filter(({ op, key }) => op === 'get' && key.startsWith('points/'))
    t.equal(new Set(read.map(({ key }) => key)).size, count)
    t.equal(manifest.parent, keys.get(parent))
  }
})

t.test('what changed in many places is all pushed, in whatever order the disk says what is there', async t => {
  const repository = await newRepository(new MemoryTarget())
  const bytes = randomBytes(200 * CHUNK, 1)
  await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes), checkpoint: 'c1' }])
  const changed = Buffer.from(bytes)
  const ranges = Array.from({ length: 100 }, (_, number) => ({ offset: 2 * number * CHUNK + 100, length: 1 + (number % 200) }))
  for (const { offset, length } of ranges) changed.fill(7, offset, offset + length)
  changed.fill(0, 20 * CHUNK, 21 * CHUNK)
  let asked = 0
  let most = 0
  const source = Object.assign(new BytesSource(changed), {
    async *extents(range: { offset: number; length: number }) {
      most = Math.max(most, ++asked)
      await sleep((range.offset / CHUNK) % 7)
      yield* BytesSource.prototype.extents.call(source, range)
      asked--
    },
  })
  const pushed = { name: 'root', source, changes: { bitmap: bitmapOf(ranges), since: 'c1' } }
  const { key, manifest } = await pushDisks(repository, [pushed])
  t.match(manifest.disks[0], { read: { mode: 'bitmap' }, dirty: 100 * CHUNK, new: 99 * CHUNK })
  t.ok((await restored(repository, key, 'root')).equals(changed))
  t.ok(most > 1 && most <= 32, `${most} answers are waited for at once`)

  const failing = {
    ...pushed,
    source: Object.assign(new BytesSource(changed), {
      async *extents(range: { offset: number; length: number }) {
        asked++
        await sleep((range.offset / CHUNK) % 7)
        asked--
        if (range.offset === 40 * CHUNK) throw new Error('bad sector')
        yield* BytesSource.prototype.extents.call(source, range)
      },
    }),
  }
  await t.rejects(pushDisks(repository, [failing]), { message: 'bad sector' })
  t.equal(asked, 0, 'and whoever fails waits for what was asked')
})
