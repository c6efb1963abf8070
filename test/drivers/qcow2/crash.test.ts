// Power cuts: at every moment of a history, whatever part of the unflushed sectors is left, the image opens, nothing in it contradicts
// itself, what was flushed is there, and what was not is the old or the new.

import { writeFileSync } from 'node:fs'
import fc from 'fast-check'
import t from 'tap'
import { endOf, type Range } from '../../../src/base/ranges.ts'
import { changeBackingFile } from '../../../src/drivers/qcow2/change-backing-file.ts'
import { listBitmaps, readBitmap, storeBitmaps } from '../../../src/drivers/qcow2/bitmaps.ts'
import { checkImage } from '../../../src/drivers/qcow2/check/check.ts'
import { createImage, type CreateOptions } from '../../../src/drivers/qcow2/create.ts'
import type { Qcow2Node } from '../../../src/drivers/qcow2/qcow2-node.ts'
import { createSnapshot, deleteSnapshot, openSnapshot } from '../../../src/drivers/qcow2/snapshots.ts'
import { readAt } from '../../helpers/block-node-suite.ts'
import { MemoryNode } from '../../helpers/memory-node.ts'
import { openQcow2 } from '../../helpers/qcow2-image.ts'
import { missing, qemuCheck, scratchFolder } from '../../helpers/qemu.ts'
import { randomBytes } from '../../helpers/random-bytes.ts'
import { SimulatedDisk } from '../../helpers/simulated-disk.ts'

interface Step {
  readonly kind: 'write' | 'compressed' | 'zero' | 'discard' | 'flush'
  readonly at: number
  readonly length: number
  readonly unmap: boolean
  readonly seed: number
}

/** What the disk may hold: a byte is that of the last flush, or of something that was begun since. */
class Possible {
  readonly #flushed: Buffer
  #since: (Range & { readonly data: Buffer | undefined })[] = []

  constructor(content: Buffer) {
    this.#flushed = Buffer.from(content)
  }

  begin(range: Range, data?: Buffer) {
    this.#since.push({ ...range, data })
  }

  flushed(content: Buffer) {
    this.#flushed.set(content)
    this.#since = []
  }

  /** The first byte that nobody wrote; undefined where there is none. Discarded ones (`data` undefined) may be zero. */
  wrong(found: Buffer): number | undefined {
    for (let at = 0; at < found.length; at++) {
      if (at % 4096 === 0 && found.subarray(at, at + 4096).equals(this.#flushed.subarray(at, at + 4096))) at += 4095
      if (at >= found.length || found[at] === this.#flushed[at]) continue
      const explained = this.#since.some(
        one => at >= one.offset && at < endOf(one) && found[at] === (one.data?.[at - one.offset] ?? 0),
      )
      if (!explained) return at
    }
    return undefined
  }

  copy() {
    const copy = new Possible(this.#flushed)
    copy.#since = [...this.#since]
    return copy
  }
}

/** Images as they may be after a cut, at about every `every`th change of the disk. */
class Cuts {
  readonly images: { readonly bytes: Buffer; readonly possible: Possible }[] = []
  #changes = 0

  constructor(disk: SimulatedDisk, possible: Possible, every: number, seed: number) {
    disk.onChange = () => {
      if ((this.#changes++ + seed) % every === 0)
        this.images.push({ bytes: disk.afterCrash(seed + this.#changes), possible: possible.copy() })
    }
  }
}

async function judge(bytes: Buffer, possible: Possible, backing: Buffer | undefined, allowed = /^$/) {
  const file = new MemoryNode(Buffer.from(bytes))
  const node = await openQcow2(file, backing ? { backing: new MemoryNode(backing) } : {})
  const { messages, corruptions } = await checkImage(node.image)
  const errors = messages.filter(message => message.startsWith('ERROR') && !allowed.test(message))
  if (errors.length > 0 && corruptions > 0) throw new Error(`after a power cut: ${errors.slice(0, 3).join('; ')}`)
  const wrong = possible.wrong(await readAt(node, 0, node.size))
  if (wrong !== undefined)
    throw new Error(`after a power cut byte ${wrong} is neither what was flushed nor what was written since`)
  // And it goes on to be used.
  await node.write(0, randomBytes(Math.min(5000, node.size), 99))
  await checkImage(node.image, 'all')
  await node[Symbol.asyncDispose]()
}

const step: fc.Arbitrary<Step> = fc.record({
  kind: fc.constantFrom('write', 'write', 'write', 'compressed', 'zero', 'discard', 'flush'),
  at: fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
  length: fc.oneof(fc.integer({ min: 1, max: 1500 }), fc.integer({ min: 1, max: 40_000 })),
  unmap: fc.boolean(),
  seed: fc.nat(),
})

const history = fc.record({
  create: fc.constantFrom<Omit<CreateOptions, 'size'>>(
    { clusterSize: 512 },
    { clusterSize: 512, refcountBits: 64 },
    { clusterSize: 1024, refcountBits: 1 },
    { clusterSize: 4096 },
    { clusterSize: 16384, extendedL2: true },
    { clusterSize: 4096, version: 2 },
  ),
  backed: fc.boolean(),
  sectors: fc.integer({ min: 1, max: 200 }),
  steps: fc.array(fc.array(step, { minLength: 1, maxLength: 4 }), { minLength: 1, maxLength: 8 }),
  every: fc.integer({ min: 1, max: 9 }),
  seed: fc.nat({ max: 1e6 }),
})

async function run(node: Qcow2Node, model: Buffer, possible: Possible, batch: readonly Step[]) {
  const taken: Range[] = []
  await Promise.all(
    batch.map(async ({ kind, at, length: wanted, unmap, seed }) => {
      const { clusterSize } = node.image.geometry
      const unit = kind === 'compressed' ? clusterSize : 1
      const offset = Math.floor((at * model.length) / unit) * unit
      const range = { offset, length: Math.min(kind === 'compressed' ? clusterSize : wanted, model.length - offset) }
      if (taken.some(other => other.offset < endOf(range) && range.offset < endOf(other))) return
      taken.push(range)
      const modelled = model.subarray(offset, endOf(range))
      if (kind === 'write' || kind === 'compressed') {
        const data = kind === 'write' ? randomBytes(range.length, seed) : Buffer.alloc(range.length, `squeeze ${seed}`)
        possible.begin(range, data)
        await (kind === 'write' ? node.write(offset, data) : node.writeCompressed(offset, data))
        modelled.set(data)
      } else if (kind === 'zero') {
        possible.begin(range, Buffer.alloc(range.length))
        await node.zero(range, { unmap })
        modelled.fill(0)
      } else if (kind === 'discard') {
        possible.begin(range)
        await node.discard(range)
        modelled.set(await readAt(node, offset, range.length))
      }
    }),
  )
  if (batch[0]!.kind !== 'flush') return
  await node.flush()
  possible.flushed(model)
}

t.test('after a power cut nothing contradicts itself, what was flushed is there and the rest is old or new', async t => {
  let cut = 0
  const samples: Buffer[] = []
  await fc.assert(
    fc.asyncProperty(history, async ({ create, backed, sectors, steps, every, seed }) => {
      const disk = new SimulatedDisk()
      const size = sectors * 512
      const backing = backed ? randomBytes(size + 700, seed) : undefined
      const model = Buffer.from(backing?.subarray(0, size) ?? Buffer.alloc(size))
      await createImage(disk, { ...create, size, ...(backed && { backingFile: 'base', backingFormat: 'raw' }) })
      await disk.flush()
      const possible = new Possible(model)
      const cuts = new Cuts(disk, possible, every, seed)
      const node = await openQcow2(disk, { l2CacheBytes: 0, ...(backing && { backing: new MemoryNode(backing) }) })
      for (const batch of steps) await run(node, model, possible, batch)
      await node[Symbol.asyncDispose]()
      for (const { bytes, possible } of cuts.images) await judge(bytes, possible, backing)
      cut += cuts.images.length
      if (!backed && cuts.images.length > 0 && samples.length < 8) samples.push(cuts.images.at(-1)!.bytes)
    }),
    { numRuns: 70 },
  )
  t.ok(cut > 150, `${cut} power cuts`)

  await t.test('and qemu-img agrees', { skip: missing('qemu-img') }, async t => {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    for (const [index, bytes] of samples.entries()) {
      writeFileSync(`${folder}/${index}`, bytes)
      t.notMatch(await qemuCheck(`${folder}/${index}`), /ERROR/)
    }
  })
})

t.test('a refcount table that grows, a longer disk and another backing file come whole or not at all', async t => {
  let cut = 0
  for (let seed = 0; seed < 4; seed++) {
    const disk = new SimulatedDisk()
    const size = 3 << 20
    const model = Buffer.alloc(size)
    await createImage(disk, { size, clusterSize: 512, refcountBits: 64, backingFile: 'first', backingFormat: 'raw' })
    await disk.flush()
    const possible = new Possible(model)
    const cuts = new Cuts(disk, possible, 31, seed)
    const node = await openQcow2(disk)
    for (let at = 0; at < 2_300_000; at += 256 << 10) {
      const data = randomBytes(256 << 10, at + seed)
      possible.begin({ offset: at, length: data.length }, data)
      await node.write(at, data)
      model.set(data, at)
    }
    await node.flush()
    possible.flushed(model)
    t.ok(node.image.header.refcountTableClusters > 1, 'it has grown')
    await changeBackingFile(node.image, 'a much longer name than before', 'qcow2')
    await node[Symbol.asyncDispose]()
    for (const { bytes, possible } of cuts.images) {
      await judge(bytes, possible, undefined)
      const again = await openQcow2(new MemoryNode(bytes), { readOnly: true })
      t.match(again.image.header.backingFile, /^(first|a much longer name than before)$/)
    }
    cut += cuts.images.length
  }
  t.ok(cut > 20, `${cut} power cuts`)
})

const content = (bytes: Buffer) => [
  {
    name: 'b',
    granularityBits: 9,
    enabled: true,
    read: (offset: number, length: number) => bytes.subarray(offset, offset + length),
  },
]

t.test('stored bitmaps are the old or the new after a power cut', async t => {
  let cut = 0
  for (let seed = 0; seed < 12; seed++) {
    const disk = new SimulatedDisk()
    const size = 1 << 20
    await createImage(disk, { size, clusterSize: 512 })
    await disk.flush()
    const possible = new Possible(Buffer.alloc(size))
    const node = await openQcow2(disk)
    const states = [randomBytes(256, 1), randomBytes(256, 2), Buffer.alloc(256)]
    await storeBitmaps(node.image, content(states[0]!))
    const cuts = new Cuts(disk, possible, 1 + (seed % 3), seed)
    for (const state of states.slice(1)) await storeBitmaps(node.image, content(state))
    disk.onChange = () => undefined
    for (const { bytes, possible } of cuts.images) {
      await judge(bytes, possible, undefined)
      const again = await openQcow2(new MemoryNode(bytes), { readOnly: true })
      const { bitmaps, problem } = await listBitmaps(again.image)
      t.same([bitmaps.length, bitmaps[0]?.inconsistent, problem], [1, undefined, undefined])
      const parts: Buffer[] = []
      for await (const { data, length } of readBitmap(again.image, 'b')) parts.push(data ?? Buffer.alloc(length))
      t.ok(states.some(state => state.equals(Buffer.concat(parts))))
    }
    cut += cuts.images.length
    await node[Symbol.asyncDispose]()
  }
  t.ok(cut > 100, `${cut} power cuts`)
})

t.test('snapshots are there or not after a power cut, and harm nothing', async t => {
  let cut = 0
  for (let seed = 0; seed < 10; seed++) {
    const disk = new SimulatedDisk()
    const size = 100 << 10
    const model = randomBytes(size, seed)
    await createImage(disk, { size, clusterSize: 1024 })
    const node = await openQcow2(disk)
    await node.write(0, model)
    await node.flush()
    const possible = new Possible(model)
    const cuts = new Cuts(disk, possible, 1 + (seed % 4), seed)
    await createSnapshot(node.image, { name: 'one', date: new Date(0) })
    const data = randomBytes(30_000, seed + 1)
    possible.begin({ offset: 5000, length: data.length }, data)
    await node.write(5000, data)
    await deleteSnapshot(node.image, 'one')
    disk.onChange = () => undefined
    for (const { bytes, possible } of cuts.images) {
      await judge(bytes, possible, undefined)
      const again = await openQcow2(new MemoryNode(bytes), { readOnly: true })
      if (again.image.header.snapshotCount === 0) continue
      t.ok((await readAt(await openSnapshot(again.image, 'one'), 0, size)).equals(model), 'it shows the disk as it was')
    }
    cut += cuts.images.length
    await node[Symbol.asyncDispose]()
  }
  t.ok(cut > 100, `${cut} power cuts`)
})
