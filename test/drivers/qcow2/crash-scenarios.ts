// What is done to images while their power is cut, for crash.test.ts: each scenario cuts it as often as it can, judges what is left, and says
// how often that was. They run in threads of their own, in which nobody watches promises: it takes a third of the time.

import { parentPort, workerData } from 'node:worker_threads'
import fc from '../../helpers/property.ts'
import { endOf, type Range } from '../../../src/base/ranges.ts'
import { changeBackingFile } from '../../../src/drivers/qcow2/change-backing-file.ts'
import { listBitmaps, readBitmap, storeBitmaps } from '../../../src/drivers/qcow2/bitmaps.ts'
import { createImage, type CreateOptions } from '../../../src/drivers/qcow2/create.ts'
import { preallocate } from '../../../src/drivers/qcow2/preallocate.ts'
import type { Qcow2Node } from '../../../src/drivers/qcow2/qcow2-node.ts'
import { createSnapshot, deleteSnapshot, listSnapshots } from '../../../src/drivers/qcow2/snapshots.ts'
import { readAt } from '../../helpers/block-node-suite.ts'
import { MemoryNode } from '../../helpers/memory-node.ts'
import { Cuts, judge, Possible } from '../../helpers/power-cuts.ts'
import { openQcow2 } from '../../helpers/qcow2-image.ts'
import { randomBytes } from '../../helpers/random-bytes.ts'
import { SimulatedDisk } from '../../helpers/simulated-disk.ts'

interface Step {
  readonly kind: 'write' | 'compressed' | 'zero' | 'discard' | 'flush' | 'snapshot' | 'resize' | 'preallocate'
  readonly at: number
  readonly length: number
  readonly unmap: boolean
  readonly seed: number
}

const step: fc.Arbitrary<Step> = fc.record({
  kind: fc.constantFrom(
    ...([
      'write',
      'write',
      'write',
      'write',
      'compressed',
      'zero',
      'discard',
      'flush',
      'snapshot',
      'resize',
      'preallocate',
    ] as const),
  ),
  at: fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
  length: fc.oneof(fc.integer({ min: 1, max: 1500 }), fc.integer({ min: 1, max: 40_000 })),
  unmap: fc.boolean(),
  seed: fc.nat(),
})

type Options = Omit<CreateOptions, 'size'>

const history = fc.record({
  create: fc.constantFrom<Options>(
    { clusterSize: 512 },
    { clusterSize: 512, refcountBits: 64 },
    { clusterSize: 1024, refcountBits: 1 },
    { clusterSize: 2048, refcountBits: 4, compressionType: 'zstd' },
    { clusterSize: 4096 },
    { clusterSize: 16384, extendedL2: true },
    { clusterSize: 4096, version: 2 },
    { clusterSize: 1024, dataFile: 'data' },
    { clusterSize: 1024, dataFile: 'data', dataFileRaw: true },
  ),
  backed: fc.boolean(),
  sectors: fc.integer({ min: 1, max: 200 }),
  steps: fc.array(fc.array(step, { minLength: 1, maxLength: 4 }), { minLength: 4, maxLength: 10 }),
  seed: fc.nat({ max: 1e6 }),
})

/** A disk under test: what it holds, and what it may hold. */
class Subject {
  model: Buffer

  constructor(
    readonly node: Qcow2Node,
    readonly possible: Possible,
    model: Buffer,
  ) {
    this.model = model
  }

  /** The first step decides whether it is for the whole image; others are done at once. */
  async play(batch: readonly Step[]) {
    const first = batch[0]!
    if (first.kind === 'snapshot') return this.snapshot(first.unmap ? 'create' : 'delete')
    if (first.kind === 'resize') return this.resize(Math.ceil((first.at * 150_000) / 512) * 512 + 512)
    if (first.kind === 'preallocate') return this.preallocate(this.#rangeOf(first), first.unmap ? 'full' : 'metadata')
    await this.#requests(batch)
    if (first.kind === 'flush') await this.flush()
  }

  async flush() {
    await this.node.flush()
    this.possible.flushed(this.model)
  }

  async snapshot(what: 'create' | 'delete') {
    const { image } = this.node
    if (image.geometry.refcountBits === 1 || image.geometry.externalData) return
    const present = await listSnapshots(image)
    if (what === 'create') {
      const name = `snapshot ${present.length ? Number(present.at(-1)!.id) + 1 : 1}`
      this.possible.beginSnapshot(name, this.model)
      await createSnapshot(image, { name, date: new Date(0) })
      this.possible.snapshotIs(name, true)
    } else if (present[0]) {
      const { name } = present[0]
      this.possible.unsureOfSnapshot(name)
      await deleteSnapshot(image, name)
      this.possible.snapshotIs(name, false)
    }
  }

  async resize(size: number) {
    const { image } = this.node
    if (image.geometry.version === 2 && image.header.snapshotCount > 0) return
    this.possible.beginResize(size)
    await this.node.resize(size)
    this.model = Buffer.concat([this.model, Buffer.alloc(Math.max(0, size - this.model.length))]).subarray(0, size)
    this.possible.flushed(this.model)
  }

  async preallocate(range: Range, mode: 'full' | 'metadata') {
    const { image } = this.node
    if (!image.backing) await preallocate(image, range, mode)
  }

  #rangeOf({ kind, at, length }: Step): Range {
    const { clusterSize } = this.node.image.geometry
    const unit = kind === 'compressed' ? clusterSize : 1
    const offset = Math.floor((at * this.model.length) / unit) * unit
    return { offset, length: Math.min(kind === 'compressed' ? clusterSize : length, this.model.length - offset) }
  }

  /** Those that touch nothing of each other. */
  async #requests(batch: readonly Step[]) {
    const { node, model, possible } = this
    const taken: Range[] = []
    await Promise.all(
      batch.map(async one => {
        const { kind, unmap, seed } = one
        const range = this.#rangeOf(one)
        if (taken.some(other => other.offset < endOf(range) && range.offset < endOf(other))) return
        taken.push(range)
        const modelled = model.subarray(range.offset, endOf(range))
        if (kind === 'compressed' && node.image.geometry.externalData) return
        if (kind === 'write' || kind === 'compressed') {
          const data = kind === 'write' ? randomBytes(range.length, seed) : Buffer.alloc(range.length, `squeeze ${seed}`)
          possible.begin(range, data)
          await (kind === 'write' ? node.write(range.offset, data) : node.writeCompressed(range.offset, data))
          modelled.set(data)
        } else if (kind === 'zero') {
          possible.begin(range, Buffer.alloc(range.length))
          await node.zero(range, { unmap })
          modelled.fill(0)
        } else if (kind === 'discard') {
          possible.begin(range)
          await node.discard(range)
          modelled.set(await readAt(node, range.offset, range.length))
        }
      }),
    )
  }
}

export interface Outcome {
  /** Power cuts, each judged. */
  readonly cuts: number
  /** Some of the images, for other judges. */
  readonly samples: readonly Uint8Array[]
}

interface Asked {
  readonly seed: number
  readonly runs: number
}

function need(condition: boolean, what: string) {
  if (!condition) throw new Error(what)
}

/** Histories of everything that is done to a disk, several requests at a time. */
async function histories({ seed, runs }: Asked): Promise<Outcome> {
  let judged = 0
  const samples: Uint8Array[] = []
  const property = fc.asyncProperty(history, async ({ create, backed: wanted, sectors, steps, seed }) => {
    const disk = new SimulatedDisk()
    const data = create.dataFile === undefined ? undefined : new SimulatedDisk()
    const backed = wanted && !create.dataFileRaw
    const size = sectors * 512
    const backing = backed ? randomBytes(size + 700, seed) : undefined
    const model = Buffer.from(backing?.subarray(0, size) ?? Buffer.alloc(size))
    await createImage(disk, { ...create, size, ...(backed && { backingFile: 'base', backingFormat: 'raw' }) }, data)
    await disk.flush()
    await data?.flush()
    const possible = new Possible(model)
    const cuts = new Cuts(disk, possible, { every: 1 + (seed % 2), each: 3, seed, data })
    const node = await openQcow2(disk, { l2CacheBytes: 0, dataFile: data, ...(backing && { backing: new MemoryNode(backing) }) })
    const subject = new Subject(node, possible, model)
    for (const batch of steps) await subject.play(batch)
    await node[Symbol.asyncDispose]()
    for (const [index, cut] of cuts.images.entries()) await judge(cut, { backing, goOn: index % 7 === 0 })
    judged += cuts.images.length
    if (!backed && !data && cuts.images.length > 0 && samples.length < 20)
      samples.push(cuts.images.at(seed % cuts.images.length)!.bytes)
  })
  await fc.assert(property, { seed, numRuns: runs })
  return { cuts: judged, samples }
}

async function tables({ seed, runs }: Asked): Promise<Outcome> {
  let judged = 0
  for (let run = 0; run < runs; run++) {
    const disk = new SimulatedDisk()
    const size = 3 << 20
    const model = randomBytes(size, seed + run)
    await createImage(disk, { size, clusterSize: 512, refcountBits: 64, backingFile: 'first', backingFormat: 'raw' })
    const node = await openQcow2(disk)
    const full = 1_900_000 // about as much as the first refcount table can count
    await node.write(0, model.subarray(0, full))
    model.fill(0, full)
    await node.flush()
    const possible = new Possible(model)
    const cuts = new Cuts(disk, possible, { every: 2, each: 3, seed: seed + run })
    for (let at = full; at < 2_300_000; at += 40_000) {
      const data = randomBytes(40_000, at + seed + run)
      possible.begin({ offset: at, length: data.length }, data)
      await node.write(at, data)
      model.set(data, at)
    }
    await node.flush()
    possible.flushed(model)
    need(node.image.header.refcountTableClusters > 1, 'the refcount table has not grown')
    await changeBackingFile(node.image, 'a much longer name than before', 'qcow2')
    await node[Symbol.asyncDispose]()
    for (const [index, cut] of cuts.images.entries()) {
      await judge(cut, { goOn: index % 3 === 0 })
      const { header } = (await openQcow2(new MemoryNode(cut.bytes), { readOnly: true })).image
      need(
        /^(first|a much longer name than before)$/.test(header.backingFile ?? ''),
        `its backing file is '${header.backingFile}'`,
      )
    }
    judged += cuts.images.length
  }
  return { cuts: judged, samples: [] }
}

const content = (bytes: Buffer) => [
  {
    name: 'b',
    granularityBits: 9,
    enabled: true,
    read: (offset: number, length: number) => bytes.subarray(offset, offset + length),
  },
]

async function bitmaps({ seed, runs }: Asked): Promise<Outcome> {
  let judged = 0
  for (let run = 0; run < runs; run++) {
    const disk = new SimulatedDisk()
    const size = 1 << 20
    await createImage(disk, { size, clusterSize: 512 })
    await disk.flush()
    const possible = new Possible(Buffer.alloc(size))
    const node = await openQcow2(disk)
    const states = [randomBytes(256, 1), randomBytes(256, 2), Buffer.alloc(256), randomBytes(256, 3)]
    await storeBitmaps(node.image, content(states[0]!))
    const cuts = new Cuts(disk, possible, { every: 1, each: 3, seed: seed + run })
    for (const state of states.slice(1)) await storeBitmaps(node.image, content(state))
    cuts.end()
    for (const [index, cut] of cuts.images.entries()) {
      await judge(cut, { goOn: index % 3 === 0 })
      const again = await openQcow2(new MemoryNode(cut.bytes), { readOnly: true })
      const { bitmaps, problem } = await listBitmaps(again.image)
      need(bitmaps.length === 1 && !bitmaps[0]!.inconsistent && !problem, `the bitmap: ${problem ?? bitmaps[0]?.inconsistent}`)
      const parts: Buffer[] = []
      for await (const { data, length } of readBitmap(again.image, 'b')) parts.push(data ?? Buffer.alloc(length))
      need(
        states.some(state => state.equals(Buffer.concat(parts))),
        'the bitmap is neither the old nor the new',
      )
    }
    judged += cuts.images.length
    await node[Symbol.asyncDispose]()
  }
  return { cuts: judged, samples: [] }
}

async function snapshots({ seed, runs }: Asked): Promise<Outcome> {
  let judged = 0
  const samples: Uint8Array[] = []
  const images: Options[] = [
    { clusterSize: 1024 },
    { clusterSize: 512, refcountBits: 64 },
    { clusterSize: 512, version: 2 },
    { clusterSize: 16384, extendedL2: true, refcountBits: 2 },
  ]
  for (let run = 0; run < runs; run++) {
    const disk = new SimulatedDisk()
    const size = 100 << 10
    const model = randomBytes(size, seed + run)
    await createImage(disk, { size, ...images[run % images.length] })
    const node = await openQcow2(disk)
    await node.write(0, model)
    await node.writeCompressed(0, Buffer.alloc(node.image.geometry.clusterSize, 'squeeze'))
    model.fill('squeeze', 0, node.image.geometry.clusterSize)
    await node.flush()
    const subject = new Subject(node, new Possible(model), model)
    const cuts = new Cuts(disk, subject.possible, { every: 1, each: 2, seed: seed + run })
    const write = (at: number) => ({ kind: 'write' as const, at, length: 20_000, unmap: false, seed: seed + run + at })
    await subject.snapshot('create')
    await subject.play([write(0.05), write(0.5)])
    await subject.snapshot('create')
    await subject.play([write(0.3)])
    await subject.snapshot('delete')
    await subject.play([write(0.1), write(0.6)])
    await subject.snapshot('delete')
    cuts.end()
    for (const [index, cut] of cuts.images.entries()) await judge(cut, { goOn: index % 5 === 0 })
    judged += cuts.images.length
    for (let at = run; at < cuts.images.length && samples.length < 20; at += 31) samples.push(cuts.images[at]!.bytes)
    await node[Symbol.asyncDispose]()
  }
  return { cuts: judged, samples }
}

export const scenarios = { histories, tables, bitmaps, snapshots }

const asked = workerData as (Asked & { readonly scenario: keyof typeof scenarios }) | undefined
if (parentPort && asked?.scenario) parentPort.postMessage(await scenarios[asked.scenario](asked))
