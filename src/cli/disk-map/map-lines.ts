// What is where in a disk, as lines: for people with a size to each range and totals, for programs as `qemu-img map --output=json`.

import { formatSize } from '../../base/units.ts'
import { clean, formatShare, plural } from '../format.ts'
import { table } from '../table.ts'

export interface MapRange {
  readonly offset: number
  readonly length: number
  /** Of base:allocation (the NBD protocol, "Metadata contexts"): the range is not allocated. */
  readonly hole: boolean
  /** It reads as zeroes. */
  readonly zero: boolean
  /** The bits of the bitmaps that were asked for, in their order. */
  readonly dirty: readonly boolean[]
}

/** Takes the ranges in order and gives the lines, so that a map of any length is written as it comes. */
export interface MapWriter {
  begin(): string
  range(range: MapRange): string
  end(): string
}

/** An array with an object on each line, its members those of qemu-img 7.2 and, with a bitmap, `dirty`; with several, `bitmaps`. */
export class JsonMap implements MapWriter {
  #first = true

  constructor(private readonly bitmaps: readonly string[]) {}

  begin() {
    return '['
  }

  range({ offset, length, hole, zero, dirty }: MapRange) {
    const place = `"start": ${offset}, "length": ${length}, "depth": 0, "present": true, "zero": ${zero}, "data": ${!hole}, "offset": ${offset}`
    const before = this.#first ? '' : ',\n'
    this.#first = false
    return `${before}{ ${place}${this.#changed(dirty)}}`
  }

  #changed(dirty: readonly boolean[]) {
    if (this.bitmaps.length < 2) return dirty.map(one => `, "dirty": ${one}`).join('')
    return `, "bitmaps": ${JSON.stringify(Object.fromEntries(this.bitmaps.map((name, index) => [name, dirty[index]])))}`
  }

  end() {
    return ']\n'
  }
}

export class MapTable implements MapWriter {
  readonly #width: number
  readonly #totals = new Map<string, number>()
  #ranges = 0
  readonly #titles: readonly string[]
  readonly #changed: number[]

  constructor(
    /** Of all ranges together, and where they end. */
    private readonly length: number,
    end: number,
    bitmaps: readonly string[],
  ) {
    this.#width = Math.max('LENGTH'.length, String(end).length)
    this.#titles = bitmaps.length < 2 ? bitmaps.map(() => 'BITMAP') : bitmaps.map(clean)
    this.#changed = bitmaps.map(() => 0)
  }

  begin() {
    return this.#line('START', 'LENGTH', 'SIZE', 'CONTENT', this.#titles)
  }

  range({ offset, length, hole, zero, dirty }: MapRange) {
    const content = contentOf(hole, zero)
    this.#ranges++
    this.#totals.set(content, (this.#totals.get(content) ?? 0) + length)
    for (const [index, one] of dirty.entries()) if (one) this.#changed[index]! += length
    const changed = dirty.map(one => (one ? 'changed' : '-'))
    return this.#line(String(offset), String(length), formatSize(length), content, changed)
  }

  end() {
    const rows = [...this.#totals].map(([what, bytes]) => ({ what, bytes }))
    const several = this.#changed.length > 1
    for (const [index, bytes] of this.#changed.entries())
      rows.push({ what: several ? `changed, ${this.#titles[index]}` : 'changed', bytes })
    rows.push({ what: `total, ${plural(this.#ranges, 'range')}`, bytes: this.length })
    const totals = table(rows, [
      { title: 'BYTES', right: true, of: ({ bytes }) => bytes },
      { title: 'SIZE', right: true, of: ({ bytes }) => formatSize(bytes) },
      { title: 'SHARE', right: true, of: ({ bytes }) => formatShare(bytes, this.length) },
      { title: 'CONTENT', of: ({ what }) => what },
    ])
    return `\n${totals}`
  }

  #line(start: string, length: string, size: string, content: string, bitmaps: readonly string[]) {
    const cells = [start.padStart(this.#width), length.padStart(this.#width), size.padStart(8)]
    const changes = bitmaps.map((text, index) => text.padEnd(Math.max('changed'.length, this.#titles[index]!.length)))
    return `${[...cells, content.padEnd(7), ...changes].join('  ').trimEnd()}\n`
  }
}

/** Allocated zeroes are zeroes that take space; a hole that reads as anything else is a server's way to say "below". */
const contentOf = (hole: boolean, zero: boolean) => (zero ? (hole ? 'hole' : 'zero') : hole ? 'absent' : 'data')
