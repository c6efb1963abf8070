// The sealing threads: whatever is asked of them at once, each chunk gets its own id and a blob that opens to its bytes.

import { createHmac, hash, randomBytes, randomUUID } from 'node:crypto'
import { open } from 'node:fs/promises'
import t from 'tap'
import { copyBytes } from '../../src/base/copy-bytes.ts'
import { native } from '../../src/base/native.ts'
import { releaseShared, sharedMemory } from '../../src/base/shared-memory.ts'
import { isZero } from '../../src/base/zeroes.ts'
import { portableZstd } from '../../src/base/zstd.ts'
import { BlobIndex } from '../../src/repository/blob-index.ts'
import { BlobType, decodeBlobHeader, HEADER, ID, openBlob, sealBlob, TAG } from '../../src/repository/blob.ts'
import { idFunction } from '../../src/repository/id-function.ts'
import { PackWriter } from '../../src/repository/pack-writer.ts'
import { PackKind } from '../../src/repository/pack.ts'
import { Sealer } from '../../src/repository/sealer.ts'
import { SealThreads } from '../../src/repository/seal-threads.ts'
import { SharedSealers } from '../../src/repository/shared-sealers.ts'
import { MemoryTarget } from '../helpers/memory-target.ts'
import { scratchFile } from '../helpers/open-context.ts'
import fc from '../helpers/property.ts'

const KiB = 1024
const MiB = 1024 * KiB

/** Bytes that are their own by `fill`, half of them so that they become smaller; 0: zeroes. */
function bytesOf({ fill, length }: Chunk) {
  const bytes = Buffer.alloc(length)
  if (fill === 0) return bytes
  for (let at = 0; at < length / 2; at += 32)
    copyBytes(hash('sha256', `${fill} ${at}`, 'buffer').subarray(0, length - at), bytes, at)
  return bytes.fill(fill, Math.ceil(length / 2))
}

interface Chunk {
  readonly fill: number
  readonly length: number
}

const key = hash('sha256', 'a key', 'buffer')
const digest = async (bytes: Uint8Array) => hash('sha256', bytes)
const isSame = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0
const must = (holds: boolean, what: string) => {
  if (!holds) throw new Error(what)
}

/** In one of three ways; each says of every chunk what it is by. */
async function work(sealer: Sealer, way: 'identify' | 'seal' | 'store', chunks: readonly Chunk[], encrypted: boolean) {
  using slot = await sealer.take()
  const plain = chunks.map(bytesOf)
  const lengths = chunks.map(({ length }) => length)
  let at = 0
  for (const bytes of plain) {
    copyBytes(bytes, slot.input, at)
    at += bytes.length
  }
  const idKey = encrypted ? key : undefined
  const idOf = idFunction(idKey)
  const sealing = { type: BlobType.data, counter: 100, key: idKey }
  const zero = chunks.map(({ fill }) => fill === 0)
  const wanted = chunks.map(({ fill }) => fill % 2 === 1)
  const zeroes = way === 'store' ? undefined : await slot.identifyEach(lengths, idKey)
  if (zeroes)
    must(
      zero.every((is, number) => zeroes[number] === is),
      'a chunk is zero, or is not, and the thread says otherwise',
    )
  const sealed =
    way === 'store'
      ? (await slot.store(lengths, { ...sealing, idKey }))!
      : way === 'seal'
        ? await slot.seal(lengths, wanted, sealing)
        : []
  for (const [number, bytes] of plain.entries()) {
    if (!zero[number]) must(isSame(slot.id(number), idOf(bytes)), 'an id is not of its chunk')
    const blob = sealed[number]
    must(
      (blob !== undefined) === (way === 'store' ? !zero[number]! : way === 'seal' && wanted[number]!),
      'a blob is missing, or too many',
    )
    if (!blob) continue
    must(decodeBlobHeader(blob).counter === 100 + number, 'two blobs may have one counter')
    must(isSame(openBlob(blob, { type: BlobType.data, id: idOf(bytes), key: idKey, idOf }), bytes), 'a blob opens to other bytes')
  }
}

const chunk = (most: number) => fc.record({ fill: fc.nat(3), length: fc.integer({ min: 1, max: most }) })
const piece = (most: number, count: number) =>
  fc.record({
    way: fc.constantFrom('identify' as const, 'seal' as const, 'store' as const),
    chunks: fc.array(chunk(most), { minLength: 1, maxLength: count }),
    encrypted: fc.boolean(),
  })

t.test('chunks that are sealed at once, by sealers that share threads, each get their own id and blob', async t => {
  const sealers = new SharedSealers()
  await using awake = sealers.wake()
  t.ok(awake)
  await fc.assert(
    fc.asyncProperty(
      fc.array(piece(64 * KiB, 32), { maxLength: 12 }),
      fc.array(piece(2048 * KiB, 1), { maxLength: 4 }),
      async (small, large) => {
        // New ones each time, so that the threads get to know their memory by whatever comes first, and forget it.
        await using one = sealers.use(64 * KiB)
        await using other = sealers.use(2048 * KiB)
        t.equal(one.sealer.together(64 * KiB), 32)
        t.equal(other.sealer.together(2048 * KiB), 1)
        await Promise.all([
          ...small.map(({ way, chunks, encrypted }) => work(one.sealer, way, chunks, encrypted)),
          ...large.map(({ way, chunks, encrypted }) => work(other.sealer, way, chunks, encrypted)),
        ])
      },
    ),
    { numRuns: 12 },
  )
  t.equal(idFunction(key)(Buffer.from('x')).length, ID)
  t.ok(isSame(idFunction(key)(Buffer.from('x')), createHmac('sha256', key).update('x').digest()))
})

t.test(
  'a thread reads into its slot what it is to work on, and has nothing where the file does not have it all',
  { skip: !native && 'needs koffi' },
  async t => {
    await using stack = new AsyncDisposableStack()
    const chunks = [3, 0, 1, 2, 5].map(fill => ({ fill, length: 64 * KiB }))
    const bytes = Buffer.concat(chunks.map(bytesOf))
    const path = await scratchFile(Buffer.concat([Buffer.alloc(100, 7), bytes]), stack)
    const file = stack.use(await open(path))
    await using sealing = Sealer.start({ maxPlain: 64 * KiB, threads: 1 })
    using slot = await sealing.take()
    const lengths = chunks.map(({ length }) => length)
    const storing = { type: BlobType.data, counter: 100, key: undefined, idKey: undefined }
    const from = { fd: file.fd, at: 100 }
    t.same(await slot.identifyEach(lengths, undefined, from), [false, true, false, false, false])
    t.ok(isSame(slot.input.subarray(0, bytes.length), bytes))
    slot.input.fill(0)
    const blobs = (await slot.store(lengths, storing, from))!
    for (const [number, chunk] of chunks.entries()) {
      const blob = blobs[number]
      t.equal(blob === undefined, chunk.fill === 0)
      if (blob) t.ok(isSame(openBlob(blob, { type: BlobType.data, key: undefined, idOf: idFunction(undefined) }), bytesOf(chunk)))
    }
    for (const wrong of [
      { ...from, at: 101 },
      { ...from, fd: 1_000_000 },
    ]) {
      t.equal(await slot.identifyEach(lengths, undefined, wrong), undefined)
      t.equal(await slot.store(lengths, storing, wrong), undefined)
    }
  },
)

t.test('a thread ends by itself, when it has done what it was given: koffi does not survive being stopped', async t => {
  const threads = new SealThreads(1)
  const digest = threads.run({ op: 'digest', bytes: Buffer.alloc(4 << 20) }, true)
  await threads[Symbol.asyncDispose]()
  t.equal(await digest, hash('sha256', Buffer.alloc(4 << 20), 'hex'))
  await t.rejects(threads.run({ op: 'digest', bytes: Buffer.alloc(1) }, true), /a sealing thread ended/)
  await threads[Symbol.asyncDispose]()
})

t.test('memory that threads share is as long as was asked for, all zeroes, and nobody else has it', async t => {
  for (const length of [0, 1, 4096, (2 << 20) - 1, 2 << 20, (4 << 20) + 3]) {
    const [one, other] = [sharedMemory(length), sharedMemory(length)]
    t.equal(one.length, length)
    t.ok(one.buffer instanceof SharedArrayBuffer)
    t.ok(isSame(one, Buffer.alloc(length)))
    one.fill(1)
    t.ok(isSame(other, Buffer.alloc(length)))
  }
})

t.test(
  'memory that threads shared is given back at once, and not when garbage is looked for',
  { skip: !native && 'needs koffi' },
  async t => {
    const plain = randomBytes(MiB)
    const blob = Buffer.alloc(HEADER + MiB + TAG)
    const id = idFunction(undefined)(plain)
    sealBlob(plain, { type: BlobType.data, id, counter: 1, key: undefined, zstd: portableZstd }, blob)
    const target = new MemoryTarget()
    target.put = async () => ({ tag: 'nobody reads it again' })
    const where = { repository: randomUUID(), session: randomUUID(), cas: false, index: new BlobIndex() }
    const packs = new PackWriter({
      ...where,
      target,
      digest,
      kind: PackKind.data,
      capacity: 16 * MiB,
      slabs: 2,
      stored: async () => {},
    })
    const sealing = Sealer.start({ maxPlain: 256 * KiB, threads: 1 })
    const slots = await Promise.all(Array.from({ length: sealing.slots }, () => sealing.take()))
    const before = process.memoryUsage.rss()
    const memory = sharedMemory(32 * MiB).fill(1)
    for (const slot of slots) slot.input.fill(1)
    for (let count = 0; count < 40; count++) await packs.append(blob)
    await packs.finish()
    const taken = process.memoryUsage.rss() - before
    t.ok(taken > 32 * MiB, `${taken / MiB} MiB were taken`)
    releaseShared(memory)
    t.ok(isZero(memory))
    await packs[Symbol.asyncDispose]()
    for (const slot of slots) slot[Symbol.dispose]()
    await sealing[Symbol.asyncDispose]()
    const kept = process.memoryUsage.rss() - before
    t.ok(kept < 8 * MiB, `${kept / MiB} MiB were kept`)
  },
)
