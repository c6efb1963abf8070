// Whether two images show the same: qemu-img compare.

import { alignDown, endOf, pieces, type Range } from '../../base/ranges.ts'
import { isZero } from '../../base/zeroes.ts'
import type { Extent } from '../../block/driver.ts'
import type { Edge } from '../../block/edge.ts'

const PIECE = 1 << 20
const AT_ONCE = 4

/** For the pieces that are looked at together: of one image and of the other. */
type Memory = readonly (readonly [Buffer, Buffer])[]

export interface Comparison {
  /** Undefined where they are alike. */
  readonly difference?: string
  /** Only their sizes differ: what one has more is zeroes. */
  readonly longer?: boolean
}

/** `strict`: they must be as long, and the same parts must be there in both. `at` is told how far it has come. */
export async function compareDisks(a: Edge, b: Edge, strict: boolean, at: (done: number) => void): Promise<Comparison> {
  if (strict && a.size !== b.size) return { difference: 'Strict mode: Image size mismatch!' }
  const memory: Memory = Array.from({ length: AT_ONCE }, () => [Buffer.allocUnsafeSlow(PIECE), Buffer.allocUnsafeSlow(PIECE)])
  const common = Math.min(a.size, b.size)
  for await (const [range, one, other] of together(a, b, common)) {
    if (strict && isThere(one) !== isThere(other))
      return { difference: `Strict mode: Offset ${range.offset} block status mismatch!` }
    const place = one.zero && other.zero ? undefined : await firstDifference(memory, a, b, range, one.zero, other.zero)
    if (place !== undefined) return { difference: `Content mismatch at offset ${place}!` }
    at(endOf(range))
  }
  if (a.size === b.size) return {}
  const longer = a.size > b.size ? a : b
  for await (const extent of longer.extents({ offset: common, length: longer.size - common })) {
    const place = extent.zero ? undefined : await firstByte(memory, longer, extent)
    if (place !== undefined) return { difference: `Content mismatch at offset ${place}!`, longer: true }
    at(endOf(extent))
  }
  return { longer: true }
}

const isThere = ({ zero, allocated, depth = 1 }: Extent) => `${depth > 0} ${zero} ${allocated}`

/** The parts in which both are of one kind each. */
async function* together(a: Edge, b: Edge, length: number): AsyncGenerator<readonly [Range, Extent, Extent]> {
  const [ofA, ofB] = [a, b].map(edge => edge.extents({ offset: 0, length })) as [AsyncGenerator<Extent>, AsyncGenerator<Extent>]
  try {
    let one = await ofA.next()
    let other = await ofB.next()
    for (let offset = 0; offset < length;) {
      if (one.done || other.done) throw new Error('the extents of an image end before it does')
      const end = Math.min(endOf(one.value), endOf(other.value))
      yield [{ offset, length: end - offset }, one.value, other.value]
      if (endOf(one.value) === end) one = await ofA.next()
      if (endOf(other.value) === end) other = await ofB.next()
      offset = end
    }
  } finally {
    // One that is left in the middle would keep its image open.
    await Promise.all([ofA.return(undefined), ofB.return(undefined)])
  }
}

const differing = (left: Buffer, right: Buffer) =>
  left.equals(right) ? undefined : sector((from, to) => !left.subarray(from, to).equals(right.subarray(from, to)), left.length)
const nonZero = (bytes: Buffer) =>
  isZero(bytes) ? undefined : sector((from, to) => !isZero(bytes.subarray(from, to)), bytes.length)

/** Where in the range the first sector stands that is not alike; where one is zero only the other is read. */
function firstDifference(memory: Memory, a: Edge, b: Edge, range: Range, zeroA: boolean, zeroB: boolean) {
  if (zeroA || zeroB) return firstByte(memory, zeroA ? b : a, range)
  return search(range, async ({ offset, length }, slot) => {
    const [left, right] = memory[slot]!.map(bytes => bytes.subarray(0, length)) as [Buffer, Buffer]
    await Promise.all([a.read(offset, left), b.read(offset, right)])
    return differing(left, right)
  })
}

/** Where in the range the first sector stands that is not all zeroes. */
const firstByte = (memory: Memory, edge: Edge, range: Range) =>
  search(range, async ({ offset, length }, slot) => {
    const bytes = memory[slot]![0].subarray(0, length)
    await edge.read(offset, bytes)
    return nonZero(bytes)
  })

/** Looks at several pieces at a time; of what they find the first counts. */
async function search(
  range: Range,
  look: (piece: Range, slot: number) => Promise<number | undefined>,
): Promise<number | undefined> {
  for (let offset = range.offset; offset < endOf(range);) {
    const end = Math.min(alignDown(offset, PIECE) + AT_ONCE * PIECE, endOf(range))
    const some = [...pieces({ offset, length: end - offset }, PIECE)]
    const found = await Promise.all(some.map(look))
    const first = found.findIndex(place => place !== undefined)
    if (first >= 0) return some[first]!.offset + found[first]!
    offset = end
  }
  return undefined
}

/** Where the first sector of 512 bytes begins of which it is true. */
function sector(isTrue: (from: number, to: number) => boolean, length: number) {
  let from = 0
  while (from + 512 < length && !isTrue(from, from + 512)) from += 512
  return from
}
