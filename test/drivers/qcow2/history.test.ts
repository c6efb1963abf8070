// Random histories of writes, zeroes, discards and resizes, over all kinds of images: qemu-img check must have nothing to say of what they
// leave behind, and qemu-img compare must find in it what a plain buffer holds.

import { writeFileSync } from 'node:fs'
import fc from '../../helpers/property.ts'
import pLimit from 'p-limit'
import t from 'tap'
import { endOf, type Range } from '../../../src/base/ranges.ts'
import { native } from '../../../src/base/native.ts'
import { createImage, type CreateOptions } from '../../../src/drivers/qcow2/create.ts'
import { FileNode } from '../../../src/drivers/file.ts'
import type { Qcow2Node } from '../../../src/drivers/qcow2/qcow2-node.ts'
import { readAt } from '../../helpers/block-node-suite.ts'
import { openImage } from '../../helpers/image-chain.ts'
import { openContext } from '../../helpers/open-context.ts'
import { missing, qemuCheck, run, scratchFolder } from '../../helpers/qemu.ts'
import { diskContent, randomBytes } from '../../helpers/random-bytes.ts'

interface Step {
  readonly kind: 'write' | 'zero' | 'discard' | 'flush' | 'reopen' | 'resize'
  readonly at: number
  readonly length: number
  readonly aligned: boolean
  readonly unmap: boolean
  readonly seed: number
}

interface Disk {
  readonly create: CreateOptions
  /** Of the backing file, as a part of the disk's size; 0 for none. */
  readonly backing: number
  readonly steps: readonly (readonly Step[])[]
}

const step: fc.Arbitrary<Step> = fc.record({
  kind: fc.constantFrom('write', 'write', 'write', 'write', 'zero', 'zero', 'discard', 'discard', 'flush', 'reopen', 'resize'),
  at: fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
  length: fc.oneof(fc.integer({ min: 1, max: 3000 }), fc.integer({ min: 1, max: 400_000 })),
  aligned: fc.boolean(),
  unmap: fc.boolean(),
  seed: fc.nat(),
})

const disk: fc.Arbitrary<Disk> = fc
  .record({
    clusterSize: fc.constantFrom(512, 1024, 4096, 65536, 1 << 18),
    refcountBits: fc.constantFrom(1, 2, 8, 16, 32, 64),
    version: fc.constantFrom(2 as const, 3 as const, 3 as const),
    extended: fc.boolean(),
    preallocation: fc.constantFrom('off' as const, 'off' as const, 'metadata' as const),
    size: fc.integer({ min: 1, max: 3000 }),
    backing: fc.constantFrom(0, 0, 0.5, 1, 1.3),
    steps: fc.array(fc.array(step, { minLength: 1, maxLength: 5 }), { minLength: 1, maxLength: 10 }),
  })
  .map(({ clusterSize, refcountBits, version, extended, preallocation, size, backing, steps }) => ({
    create: {
      size: size * 512,
      clusterSize,
      version,
      refcountBits: version === 2 ? 16 : refcountBits,
      extendedL2: version === 3 && extended && clusterSize >= 16384,
      preallocation: backing > 0 ? 'off' : preallocation,
    },
    backing,
    steps,
  }))

const rangeOf = ({ at, length, aligned }: Step, size: number): Range => {
  const unit = aligned ? 4096 : 1
  const offset = Math.floor((at * size) / unit) * unit
  return { offset, length: Math.max(1, Math.min(Math.ceil(length / unit) * unit, size - offset)) }
}

const overlaps = (a: Range, b: Range) => a.offset < endOf(b) && b.offset < endOf(a)

async function play(folder: string, name: string, { create, backing, steps }: Disk) {
  const path = `${folder}/${name}.qcow2`
  let model = Buffer.alloc(create.size)
  const backingSize = Math.ceil((create.size * backing) / 512) * 512
  if (backing > 0) {
    const content = diskContent(backingSize, create.size, 4096)
    writeFileSync(`${folder}/${name}.base`, content)
    model.set(content.subarray(0, create.size))
  }
  {
    writeFileSync(path, '')
    await using file = await FileNode.open(path, openContext(), native)
    await createImage(file, { ...create, ...(backing > 0 && { backingFile: `${name}.base`, backingFormat: 'raw' }) })
  }
  let stack = new AsyncDisposableStack()
  let node = await openImage<Qcow2Node>(path, stack)
  try {
    for (const batch of steps) {
      const [first] = batch
      if (first!.kind === 'reopen') {
        await stack.disposeAsync()
        stack = new AsyncDisposableStack()
        node = await openImage(path, stack)
      } else if (first!.kind === 'resize') {
        const size = Math.max(1, Math.ceil((first!.at * 1.5 * create.size) / 512)) * 512
        await node.resize(size)
        model = Buffer.concat([model, Buffer.alloc(Math.max(0, size - model.length))]).subarray(0, size)
      } else await playBatch(node, model, batch)
    }
    if (!(await readAt(node, 0, node.size)).equals(model)) throw new Error('we read something else than what was written')
  } finally {
    await stack.disposeAsync()
  }
  const complaint = await qemuCheck(path)
  if (complaint !== '') throw new Error(complaint)
  writeFileSync(`${path}.raw`, model)
  const { status, stdout, stderr } = await run('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', path, `${path}.raw`])
  if (status !== 0) throw new Error(`qemu-img compare: ${stdout}${stderr}`)
}

/** Steps that touch nothing of each other, at once. */
async function playBatch(node: Qcow2Node, model: Buffer, batch: readonly Step[]) {
  const placed = batch
    .map(step => ({ step, range: rangeOf(step, model.length) }))
    .filter(({ range }, index, all) => all.slice(0, index).every(earlier => !overlaps(earlier.range, range)))
  await Promise.all(
    placed.map(async ({ step: { kind, seed, unmap }, range }) => {
      const modelled = model.subarray(range.offset, endOf(range))
      if (kind === 'write') {
        const data = randomBytes(range.length, seed)
        await node.write(range.offset, data, { fua: seed % 5 === 0 })
        modelled.set(data)
      } else if (kind === 'zero') {
        await node.zero(range, { unmap })
        modelled.fill(0)
      } else if (kind === 'discard') {
        await node.discard(range)
        modelled.set(await readAt(node, range.offset, range.length))
      } else await node.flush()
    }),
  )
}

t.test(
  'whatever is done to an image, qemu-img check has nothing to say and qemu-img compare finds what was written',
  { skip: missing('qemu-img') },
  async t => {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    const limit = pLimit(3)
    let count = 0
    const property = fc.asyncProperty(fc.array(disk, { minLength: 6, maxLength: 6 }), async disks => {
      await Promise.all(disks.map(one => limit(() => play(folder, String(count++), one))))
    })
    await fc.assert(property, { numRuns: Number(process.env['RUNS'] ?? 10), endOnFailure: true })
    t.ok(count >= 60, `${count} images`)
  },
)
