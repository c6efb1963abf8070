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
  t.ok(node.reads.length > 16 && node.reads.length <= 2 + 32, `${node.reads.length} reads`)
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

/** Of 17 chunks each, every 18 chunks; what is not zero of them is their first bytes. */
const places = Array.from({ length: 50 }, (_, number) => ({ offset: 18 * number * CHUNK, length: 17 * CHUNK }))

/** Answers in another order than it is asked. */
class AskedSource extends BytesSource {
  asked = 0
  open = 0
  most = 0

  constructor(
    bytes: Buffer,
    private readonly broken?: number,
  ) {
    super(bytes)
  }

  override async *extents(range: { offset: number; length: number }) {
    this.asked++
    this.most = Math.max(this.most, ++this.open)
    await sleep((range.offset / CHUNK) % 7)
    this.open--
    if (range.offset === this.broken) throw new Error('bad sector')
    yield* super.extents(range)
  }
}

t.test('what changed in many places is all pushed, in whatever order the disk says what is there', async t => {
  const repository = await newRepository(new MemoryTarget())
  const bytes = Buffer.alloc(50 * 18 * CHUNK)
  await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes), checkpoint: 'c1' }])
  const changed = Buffer.from(bytes)
  for (const { offset } of places) changed.writeUInt32LE(offset + 1, offset)
  const changes = { bitmap: bitmapOf(places), since: 'c1' }
  const source = new AskedSource(changed)
  const { key, manifest } = await pushDisks(repository, [{ name: 'root', source, changes }])
  t.match(manifest.disks[0], { read: { mode: 'bitmap' }, dirty: 50 * CHUNK, new: 50 * CHUNK })
  t.ok((await restored(repository, key, 'root')).equals(changed))
  t.ok(source.most > 1 && source.most <= 32, `${source.most} answers are waited for at once`)

  const broken = new AskedSource(changed, places[20]!.offset)
  await t.rejects(pushDisks(repository, [{ name: 'root', source: broken, changes }]), { message: 'bad sector' })
  t.equal(broken.open, 0, 'and whoever fails waits for what was asked')
})

t.test('a disk is not asked whether a small place is a hole, but read', async t => {
  const repository = await newRepository(new MemoryTarget())
  const bytes = Buffer.alloc(50 * 18 * CHUNK, 1)
  await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes), checkpoint: 'c1' }])
  const small = places.map(({ offset, length }) => ({ offset, length: length - CHUNK }))
  for (const [number, { offset, length }] of small.entries()) bytes.fill(number % 3, offset, offset + length)
  const source = new AskedSource(bytes)
  const { key } = await pushDisks(repository, [{ name: 'root', source, changes: { bitmap: bitmapOf(small), since: 'c1' } }])
  t.ok((await restored(repository, key, 'root')).equals(bytes))
  t.equal(source.asked, 0)
})
