// Damaged images: whatever a file says of itself, it is refused by a Fault or read as something; it never crashes us, keeps us busy, or
// makes us take memory for what it announces.

import fc from '../../helpers/property.ts'
import t from 'tap'
import { Fault } from '../../../src/base/errors.ts'
import { listBitmaps, readBitmap, removeBitmap, storeBitmaps } from '../../../src/drivers/qcow2/bitmaps.ts'
import { checkImage } from '../../../src/drivers/qcow2/check/check.ts'
import type { CreateOptions } from '../../../src/drivers/qcow2/create.ts'
import { CorruptImage } from '../../../src/drivers/qcow2/corrupt-image.ts'
import type { Qcow2Node } from '../../../src/drivers/qcow2/qcow2-node.ts'
import { createSnapshot, deleteSnapshot, listSnapshots, openSnapshot } from '../../../src/drivers/qcow2/snapshots.ts'
import { MemoryNode } from '../../helpers/memory-node.ts'
import { newImage, openQcow2 } from '../../helpers/qcow2-image.ts'
import { generator, randomBytes } from '../../helpers/random-bytes.ts'

/** An image that has one of everything. */
async function specimen(create: Partial<CreateOptions>): Promise<Buffer> {
  const file = new MemoryNode(Buffer.alloc(0))
  const size = 64 << 10
  {
    await using node = await newImage(file, { size, clusterSize: 1024, backingFile: 'base', backingFormat: 'raw', ...create })
    const { clusterSize } = node.image.geometry
    await node.write(0, randomBytes(5000, 1))
    await node.writeCompressed(8 * clusterSize, Buffer.alloc(2 * clusterSize, 'compressed'))
    await node.zero({ offset: 20_000, length: 3000 }, { unmap: true })
    if (node.image.geometry.version === 3) {
      await createSnapshot(node.image, { name: 'snapshot', date: new Date(0) })
      const bytes = randomBytes(16, 3)
      await storeBitmaps(node.image, [
        { name: 'bitmap', granularityBits: 9, enabled: true, read: (offset, length) => bytes.subarray(offset, offset + length) },
      ])
    }
    await node.write(1500, randomBytes(3000, 2))
  }
  return file.bytes
}

interface Mutation {
  readonly where: number
  readonly what: number
  readonly kind: 'header' | 'table' | 'anywhere' | 'cut' | 'swap'
}

const interesting = [0, 1, 0x7f, 0x80, 0xff, 0x40, 0xc0, 0xfe, 3, 0x10]

/** Structure-aware: fields of the header, entries of tables (whose clusters hold few bytes that are not zero), the length. */
function mutate(image: Buffer, { where, what, kind }: Mutation): Buffer {
  const bytes = Buffer.from(image)
  const next = generator(what)
  if (kind === 'cut') return bytes.subarray(0, where % bytes.length)
  if (kind === 'header') bytes[where % 180] = interesting[next() % interesting.length]!
  else if (kind === 'anywhere') bytes[where % bytes.length] = next() & 0xff
  else if (kind === 'swap') {
    const [from, to] = [where % (bytes.length - 8), next() % (bytes.length - 8)].map(at => at - (at % 8))
    bytes.copy(bytes, to, from, from! + 8)
  } else {
    // An entry that points somewhere points somewhere else.
    const entries: number[] = []
    for (let at = 512; at + 8 <= bytes.length; at += 8)
      if (bytes.readUInt32BE(at) % 0x4000_0000 === 0 && bytes.readUInt32BE(at + 4) !== 0) entries.push(at)
    const at = entries[where % entries.length] ?? 512
    const change = next() % 4
    if (change === 0) bytes.writeUInt32BE(next(), at)
    else if (change === 1) bytes.writeUInt32BE((next() % 64) * 1024, at + 4)
    else bytes[at + (next() % 8)] = interesting[next() % interesting.length]!
  }
  return bytes
}

async function attempt(work: () => Promise<unknown>) {
  try {
    await work()
  } catch (error) {
    if (!(error instanceof Fault)) throw error
  }
}

/** Everything one can ask of an image. Each may be refused; none may do anything else. */
async function useAll(bytes: Buffer, writable: boolean) {
  const file = new MemoryNode(Buffer.from(bytes))
  await attempt(async () => {
    const node = await openQcow2(file, { readOnly: !writable, backing: new MemoryNode(randomBytes(70_000, 5)) })
    await attempt(() => readAll(node))
    await attempt(() => extentsOf(node))
    await attempt(() => node.info())
    await attempt(() => checkImage(node.image))
    await attempt(async () => {
      for (const { name } of await listSnapshots(node.image)) {
        const snapshot = await openSnapshot(node.image, name)
        await snapshot.read(0, Buffer.alloc(Math.min(snapshot.size, 1 << 20)))
      }
    })
    await attempt(async () => {
      for (const { name } of (await listBitmaps(node.image)).bitmaps) for await (const _part of readBitmap(node.image, name));
    })
    if (writable) {
      await attempt(() => node.write(0, randomBytes(Math.min(9000, node.size), 1)))
      await attempt(() => node.zero({ offset: 0, length: Math.min(30_000, node.size) }, { unmap: true }))
      await attempt(() => node.discard({ offset: 0, length: Math.min(60_000, node.size) }))
      await attempt(() => removeBitmap(node.image, undefined))
      await attempt(() => createSnapshot(node.image, { name: 'another', date: new Date(0) }))
      await attempt(() => deleteSnapshot(node.image, 'snapshot'))
      await attempt(() => checkImage(node.image, 'all'))
      await attempt(() => node.flush())
    }
    await node[Symbol.asyncDispose]()
  })
}

async function readAll(node: Qcow2Node) {
  const into = Buffer.alloc(Math.min(node.size, 1 << 20))
  if (into.length > 0) await node.read(0, into)
}

async function extentsOf(node: Qcow2Node) {
  let count = 0
  for await (const _extent of node.extents({ offset: 0, length: node.size })) if (++count > 1000) break
}

const mutation: fc.Arbitrary<Mutation> = fc.record({
  where: fc.nat({ max: 2 ** 30 }),
  what: fc.nat(),
  kind: fc.constantFrom('header', 'table', 'table', 'anywhere', 'cut', 'swap'),
})

/** Of each of the four kinds. */
const RUNS = Number(process.env['RUNS'] ?? 1300)
let tried = 0

for (const [name, create] of Object.entries<Partial<CreateOptions>>({
  'version 3': {},
  'version 2': { version: 2 },
  'subclusters and zstd': { extendedL2: true, clusterSize: 16384, compressionType: 'zstd' },
  'refcounts of 4 bits': { refcountBits: 4, clusterSize: 512 },
})) {
  t.test(`damaged images of ${name} are refused by a Fault or read as something, at once and in little memory`, async t => {
    const image = await specimen(create)
    const before = process.memoryUsage().rss
    let slowest = 0
    await fc.assert(
      fc.asyncProperty(fc.array(mutation, { minLength: 1, maxLength: 3 }), fc.boolean(), async (mutations, writable) => {
        const bytes = mutations.reduce((bytes, one) => (bytes.length > 600 ? mutate(bytes, one) : bytes), image)
        const begun = performance.now()
        await useAll(bytes, writable)
        slowest = Math.max(slowest, performance.now() - begun)
        tried++
      }),
      { numRuns: RUNS },
    )
    t.ok(slowest < 5000, `the slowest took ${Math.round(slowest)} ms`)
    const more = process.memoryUsage().rss - before
    t.ok(more < 512 << 20, `${more >> 20} MiB of memory more`)
  })
}

t.test('those were five thousand damaged images', t => {
  t.ok(tried >= Math.min(5000, 4 * RUNS), `${tried} images`)
  t.end()
})

t.test('tables announced as large as they may be take no memory that the file does not have', async t => {
  const file = new MemoryNode(Buffer.alloc(0))
  await using node = await newImage(file, { size: 1 << 20, clusterSize: 65536 })
  await node.flush()
  const bytes = Buffer.from(file.bytes)
  bytes.writeUInt32BE(4 << 20, 36) // an L1 table of 32 MiB
  bytes.writeUInt32BE(128, 56) // a refcount table of 8 MiB
  bytes.writeUInt32BE(65536, 60) // and all the snapshots there can be
  bytes.writeUInt32BE(0x40000, 68)
  const before = process.memoryUsage()
  for (let index = 0; index < 20; index++) {
    await t.rejects(openQcow2(new MemoryNode(bytes), { readOnly: true }), CorruptImage)
    bytes.writeUInt32BE(1, 36) // then the snapshots alone
    const node = await openQcow2(new MemoryNode(bytes), { readOnly: true })
    await node.read(0, Buffer.alloc(65536))
    await t.rejects(listSnapshots(node.image), CorruptImage)
    bytes.writeUInt32BE(4 << 20, 36)
  }
  const { rss, external } = process.memoryUsage()
  t.ok(rss - before.rss < 64 << 20 && external - before.external < 64 << 20, `${(rss - before.rss) >> 20} MiB`)
})

t.test('an image whose every L1 entry points to one L2 table is checked in a moment', async t => {
  const file = new MemoryNode(Buffer.alloc(0))
  {
    await using node = await newImage(file, { size: 1 << 30, clusterSize: 512 })
    await node.write(0, randomBytes(512, 1))
  }
  const header = file.bytes.readUInt32BE(44)
  const entry = file.bytes.subarray(header, header + 8)
  for (let at = header; at < header + 32768 * 8; at += 8) file.bytes.set(entry, at)
  const begun = performance.now()
  const { corruptions } = await checkImage((await openQcow2(file, { readOnly: true })).image)
  t.ok(corruptions > 0)
  t.ok(performance.now() - begun < 5000)
})

t.test('guest data are never written over a table, and the image then takes no more writes', async t => {
  const file = new MemoryNode(Buffer.alloc(0))
  {
    await using node = await newImage(file, { size: 1 << 20 })
    await node.write(0, randomBytes(512, 1))
  }
  const l1 = file.bytes.readUInt32BE(44)
  const l2 = file.bytes.readUInt32BE(l1 + 4)
  file.bytes.writeUInt32BE(l1, l2 + 4) // the first cluster of the disk is the L1 table
  const before = Buffer.from(file.bytes)
  const node = await openQcow2(file)
  await t.rejects(node.write(100, randomBytes(512, 2)), { message: /overlap with a table/ })
  await t.rejects(node.write(1 << 19, randomBytes(512, 2)), CorruptImage)
  await node[Symbol.asyncDispose]()
  t.equal(file.bytes[79], 2, 'it is marked corrupt')
  file.bytes[79] = 0
  t.ok(file.bytes.subarray(l1, l1 + 65536).equals(before.subarray(l1, l1 + 65536)))
})
