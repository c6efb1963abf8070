// Which layer of an image each part comes from, and where it stands there: qemu-img map.

import { CorruptImage } from '../../drivers/qcow2/corrupt-image.ts'
import type { GraphNode } from '../../block/graph-node.ts'
import { endOf, type Range } from '../../base/ranges.ts'
import type { Extent } from '../../block/driver.ts'
import { Images, type ImageName } from './images.ts'

/** QMP's MapEntry. */
export interface MapEntry {
  readonly start: number
  readonly length: number
  /** 0 is the image itself, 1 the one behind it, ... */
  readonly depth: number
  /** Some layer has it. */
  readonly present: boolean
  readonly zero: boolean
  readonly data: boolean
  readonly offset?: number
  readonly filename?: string
}

export interface MapOptions {
  readonly start?: number | undefined
  readonly length?: number | undefined
}

/** Neighbours that are alike are one. */
export async function* imageMap(image: ImageName, { start = 0, length = Infinity }: MapOptions = {}): AsyncGenerator<MapEntry> {
  await using images = new Images()
  const node = await images.openReadOnly(image)
  const layers: GraphNode[] = []
  for (let layer: GraphNode | undefined = node; layer; layer = layer.filteredOrBacking) layers.push(layer)
  const range = { offset: Math.min(start, node.size), length: Math.max(0, Math.min(length, node.size - start)) }
  let last: MapEntry | undefined
  for await (const extent of images.reader(node).extents(range)) {
    for (const entry of entriesOf(extent, layers)) {
      const joined = last && join(last, entry)
      if (last && !joined) yield last
      last = joined ?? entry
    }
  }
  if (last) yield last
}

function* entriesOf(extent: Extent, layers: readonly GraphNode[]): Generator<MapEntry> {
  const { offset: start, length, depth = 1, zero, allocated, hostOffset } = extent
  if (depth === 0) {
    yield* nobodys(extent, layers)
    return
  }
  const layer = layers[Math.min(depth, layers.length) - 1]!
  // In a format, data that stand in a hole of the file are data nevertheless.
  const data = !zero || (hostOffset !== undefined && !allocated && layer.driver.children['backing'] !== undefined)
  const filename = layer.filename
  yield {
    start,
    length,
    depth: depth - 1,
    present: true,
    zero,
    data,
    ...(hostOffset !== undefined && { offset: hostOffset, ...(filename !== undefined && { filename }) }),
  }
}

/** No layer has it: the zeroes are the last one's, or its before one that has ended. */
function* nobodys(range: Range, layers: readonly GraphNode[]): Generator<MapEntry> {
  const ends = layers.map(({ size }) => size).filter(size => size > range.offset && size < endOf(range))
  const cuts = [range.offset, ...new Set(ends.toSorted((a, b) => a - b)), endOf(range)]
  for (const [index, start] of cuts.slice(0, -1).entries()) {
    const short = layers.findIndex(({ size }) => size <= start)
    const depth = (short < 0 ? layers.length : short) - 1
    yield { start, length: cuts[index + 1]! - start, depth, present: false, zero: true, data: false }
  }
}

function join(a: MapEntry, b: MapEntry): MapEntry | undefined {
  const alike = a.depth === b.depth && a.present === b.present && a.zero === b.zero && a.data === b.data
  const goesOn = a.offset === undefined ? b.offset === undefined : a.offset + a.length === b.offset
  return alike && goesOn ? { ...a, length: a.length + b.length } : undefined
}

/** As qemu-img writes it: an entry on each line. */
export async function* mapJson(entries: AsyncIterable<MapEntry>): AsyncGenerator<string> {
  let begin = '['
  for await (const { start, length, depth, present, zero, data, offset } of entries) {
    const place = offset === undefined ? '' : `, "offset": ${offset}`
    yield `${begin}{ "start": ${start}, "length": ${length}, "depth": ${depth}, "present": ${present}, "zero": ${zero}, "data": ${data}${place}}`
    begin = ',\n'
  }
  yield begin === '[' ? '[]\n' : ']\n'
}

const hex = (value: number) => (value === 0 ? '0' : `0x${value.toString(16)}`)

const line = (...cells: readonly string[]) =>
  `${cells
    .slice(0, 3)
    .map(cell => cell.padEnd(16))
    .join('')}${cells[3]}\n`

/** For people: only data, and where they are. */
export async function* mapText(entries: AsyncIterable<MapEntry>): AsyncGenerator<string> {
  yield line('Offset', 'Length', 'Mapped to', 'File')
  for await (const { start, length, data, zero, offset, filename = '' } of entries) {
    if (!data || zero) continue
    if (offset === undefined)
      throw new CorruptImage('File contains external, encrypted or compressed clusters; --output=json shows them')
    yield line(hex(start), hex(length), hex(offset), filename)
  }
}
