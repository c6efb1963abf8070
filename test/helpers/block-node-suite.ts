// What every driver and every filter must do, whatever it is: behave as a plain buffer does, and never say zero of what is not.

import fs from 'node:fs'
import fc from './property.ts'
import type { Test } from 'tap'
import { InvalidParameter, NotSupported, ReadOnly } from '../../src/base/errors.ts'
import { endOf, intersect, type Range } from '../../src/base/ranges.ts'
import type { BlockIo, BlockNode, Extent, ZeroFlags } from '../../src/block/driver.ts'
import { diskContent, randomBytes } from './random-bytes.ts'

/** Opens a node that reads as `content`; what must be closed after the node goes on the stack. */
export type MakeNode = (content: Buffer, below: AsyncDisposableStack) => Promise<BlockNode>

export interface Capabilities {
  /** `false`: writes must be refused. */
  readonly writable?: boolean
  /** `false`: what is written is forgotten, and all reads as zeroes. */
  readonly stores?: boolean
  /** How many random histories; more for what has more states. */
  readonly runs?: number
}

/** Several blocks of any size in use, and a last one that is whole, short, or a single byte. */
const SIZES = [1, 511, 3 * 65536, 3 * 65536 + 1, (1 << 20) + 333]

export function blockNodeSuite(
  t: Test,
  name: string,
  make: MakeNode,
  { writable = true, stores = true, runs = 40 }: Capabilities = {},
) {
  const withNode = async (content: Buffer, use: (node: BlockNode, model: Buffer) => Promise<void>) => {
    await using below = new AsyncDisposableStack()
    await using node = await make(content, below)
    await use(node, stores ? Buffer.from(content) : Buffer.alloc(content.length))
  }

  void t.test(`${name} holds what it was made with, at sizes that are no multiple of anything`, async t => {
    for (const size of SIZES) {
      await withNode(diskContent(size, size), async (node, model) => {
        t.equal(node.size, size)
        t.ok((await readAt(node, 0, size)).equals(model), `${size} bytes at once`)
        t.ok((await readAt(node, size - 1, 1)).equals(model.subarray(-1)), 'the last byte alone')
        await checkExtents(node, { offset: 0, length: size }, model)
      })
    }
  })

  if (!writable) {
    void t.test(`${name} refuses to be written`, async t => {
      await withNode(diskContent(70000, 1), async (node, model) => {
        await t.rejects(node.write(0, Buffer.alloc(1)), ReadOnly)
        await t.rejects(node.zero({ offset: 0, length: 1 }), ReadOnly)
        t.ok((await readAt(node, 0, node.size)).equals(model), 'nothing changed')
      })
    })
  }

  if (writable && stores) {
    void t.test(`${name} writes at every edge and nowhere else`, async t => {
      for (const size of SIZES) {
        await withNode(diskContent(size, size), async (node, model) => {
          for (const [index, range] of edges(size).entries()) {
            const data = randomBytes(range.length, index + 7)
            await node.write(range.offset, data)
            model.set(data, range.offset)
          }
          t.ok((await readAt(node, 0, size)).equals(model), `${size} bytes`)
          await checkExtents(node, { offset: 0, length: size }, model)
        })
      }
    })

    void t.test(`${name} reads zero after every kind of zeroing`, async t => {
      for (const flags of allZeroFlags) {
        await withNode(randomBytes((1 << 20) + 333, 3), async (node, model) => {
          for (const range of [...edges(node.size), { offset: 65536, length: 3 * 65536 }]) {
            if (await zeroed(node, range, flags)) model.fill(0, range.offset, endOf(range))
          }
          t.ok((await readAt(node, 0, node.size)).equals(model), JSON.stringify(flags))
          await checkExtents(node, { offset: 0, length: node.size }, model)
        })
      }
    })
  }

  void t.test(`${name} grows by zeroes and is cut short where it can, and else refuses and stays as it is`, async t => {
    for (const [before, after] of [
      [70_001, 200_333],
      [200_333, 70_001],
      [70_001, 391 * 512],
      [200_333, 137 * 512],
    ] as const) {
      await withNode(diskContent(before, 5), async (node, model) => {
        const resized = await node.resize(after).then(
          () => true,
          (error: unknown) => {
            const refuses = error instanceof NotSupported || error instanceof ReadOnly
            if (refuses || (error instanceof InvalidParameter && after % 512 !== 0)) return false
            throw error
          },
        )
        t.equal(node.size, resized ? after : before)
        const wanted = Buffer.concat([model, Buffer.alloc(after)]).subarray(0, node.size)
        t.ok((await readAt(node, 0, node.size)).equals(wanted))
        await checkExtents(node, { offset: 0, length: node.size }, wanted)
      })
    }
  })

  void t.test(`${name} agrees with a plain buffer over random histories`, async () => {
    const history = fc.tuple(
      fc.constantFrom(...SIZES),
      fc.nat(),
      fc.array(fc.array(step(writable), { minLength: 1, maxLength: 6 }), { maxLength: 12 }),
    )
    await fc.assert(
      fc.asyncProperty(history, ([size, seed, batches]) =>
        withNode(diskContent(size, seed, 4096), async (node, model) => {
          for (const batch of batches)
            await atOnce(node, model, stores, apart(batch.map(step => ({ ...step, range: within(step.range, size) }))))
          if (!(await readAt(node, 0, size)).equals(model)) throw new Error('the whole disk differs')
          await checkExtents(node, { offset: 0, length: size }, model)
        }),
      ),
      { numRuns: runs },
    )
  })
}

interface Step {
  readonly kind: 'read' | 'write' | 'write zeroes' | 'zero' | 'discard' | 'flush' | 'extents'
  /** Parts of the disk, 0 to 1, and a nudge off the block in bytes. */
  readonly range: { readonly at: number; readonly length: number; readonly blocks: boolean }
  readonly flags: ZeroFlags
  readonly seed: number
}

type Placed = Omit<Step, 'range'> & { readonly range: Range }

const allZeroFlags: readonly ZeroFlags[] = [false, true].flatMap(unmap =>
  [false, true].flatMap(fast => [false, true].map(fua => ({ unmap, fast, fua }))),
)

const step = (writable: boolean): fc.Arbitrary<Step> =>
  fc.record({
    kind: fc.constantFrom<Step['kind']>(
      'read',
      'extents',
      'flush',
      ...(writable ? (['write', 'write', 'write zeroes', 'zero', 'discard'] as const) : []),
    ),
    range: fc.record({
      at: fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
      length: fc.oneof(fc.integer({ min: 1, max: 5000 }), fc.integer({ min: 1, max: 300_000 })),
      blocks: fc.boolean(),
    }),
    flags: fc.constantFrom(...allZeroFlags),
    seed: fc.nat(),
  })

/** A range of the disk; half of them begin and end on blocks of 4 KiB where the disk is large enough. */
function within({ at, length, blocks }: Step['range'], size: number): Range {
  const unit = blocks && size > 8192 ? 4096 : 1
  const offset = Math.floor((at * size) / unit) * unit
  return { offset, length: Math.min(Math.ceil(length / unit) * unit, size - offset) }
}

/** Only those that touch nothing an earlier one touches: requests at once that overlap may land in any order. */
const apart = (steps: Placed[]) =>
  steps.filter((step, index) => steps.slice(0, index).every(other => !intersect(other.range, step.range)))

async function atOnce(node: BlockNode, model: Buffer, stores: boolean, steps: Placed[]) {
  await Promise.all(steps.map(step => take(node, model, stores, step)))
}

/** Does a step on both, and throws where they differ. */
async function take(node: BlockNode, model: Buffer, stores: boolean, { kind, range, flags, seed }: Placed) {
  const { offset, length } = range
  const modelled = model.subarray(offset, endOf(range))
  switch (kind) {
    case 'read':
      if (!(await readAt(node, offset, length)).equals(modelled)) throw new Error(`bytes ${offset}+${length} differ`)
      if (readyAt(node, offset, length)?.equals(modelled) === false) throw new Error(`bytes ${offset}+${length} differ at once`)
      if (fromPlace(node, range)?.equals(modelled) === false) throw new Error(`bytes ${offset}+${length} differ in their file`)
      return
    case 'write':
    case 'write zeroes': {
      const data = kind === 'write' ? randomBytes(length, seed) : Buffer.alloc(length)
      await node.write(offset, data, { fua: flags.fua === true })
      if (stores) modelled.set(data)
      return
    }
    case 'zero':
      if (await zeroed(node, range, flags)) modelled.fill(0)
      return
    case 'discard':
      await node.discard(range)
      modelled.set(await readAt(node, offset, length)) // anything, but it stays that
      return
    case 'flush':
      return node.flush()
    case 'extents':
      return checkExtents(node, range, model)
  }
}

/** False when a fast zeroing was refused, which must have changed nothing. */
async function zeroed(node: BlockNode, range: Range, flags: ZeroFlags) {
  try {
    await node.zero(range, flags)
    return true
  } catch (error) {
    if (flags.fast && error instanceof NotSupported) return false
    throw error
  }
}

export async function readAt(node: Pick<BlockIo, 'read'>, offset: number, length: number) {
  const into = Buffer.alloc(length, 0xa5)
  await node.read(offset, into)
  return into
}

/** The same without waiting, together with another one; undefined where that could not be. */
function readyAt(node: BlockIo, offset: number, length: number) {
  const [wanted, other] = [0, 1].map(() => ({ offset, bytes: Buffer.alloc(length, 0xa5), ready: false }))
  node.readReady?.([wanted!, other!])
  return wanted!.ready ? wanted!.bytes : undefined
}

/** The same from the file where it stands; undefined where that is not to be had, or not good any more. */
function fromPlace(node: BlockIo, range: Range) {
  using place = node.readPlace?.(range)
  if (!place) return undefined
  const bytes = Buffer.alloc(range.length, 0xa5)
  fs.readSync(place.fd, bytes, 0, range.length, place.at)
  return place.isGood() ? bytes : undefined
}

/** The extents cover the range exactly, and none says zero where the model holds something else. Returns them. */
export async function checkExtents(node: Pick<BlockIo, 'extents'>, range: Range, model: Buffer) {
  const extents: Extent[] = []
  let at = range.offset
  for await (const extent of node.extents(range)) {
    if (extent.offset !== at || extent.length <= 0)
      throw new Error(`an extent at ${extent.offset}+${extent.length} where one at ${at} was due`)
    at = endOf(extent)
    if (extent.zero && model.subarray(extent.offset, at).some(byte => byte !== 0)) {
      throw new Error(`extent ${extent.offset}+${extent.length} says zero, and is not`)
    }
    extents.push(extent)
  }
  if (at !== endOf(range)) throw new Error(`the extents end at ${at} and not at ${endOf(range)}`)
  return extents
}

/** First and last bytes, and pieces across the middle that begin and end off any block. */
const edges = (size: number): Range[] =>
  [
    { offset: 0, length: 1 },
    { offset: size - 1, length: 1 },
    { offset: Math.floor(size / 2), length: Math.min(4097, size - Math.floor(size / 2)) },
    { offset: Math.max(0, size - 700), length: Math.min(700, size) },
    { offset: Math.min(511, size - 1), length: Math.min(131_073, size - Math.min(511, size - 1)) },
  ].filter(({ length }) => length > 0)
