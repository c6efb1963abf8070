// What is where in a disk, as lines: for people with a size to each range and totals, for programs as `qemu-img map --output=json`.

import { formatSize } from '../../base/units.ts'
import { formatShare, plural } from '../format.ts'
import { table } from '../table.ts'

export interface MapRange {
  readonly offset: number
  readonly length: number
  /** Of base:allocation (the NBD protocol, "Metadata contexts"): the range is not allocated. */
  readonly hole: boolean
  /** It reads as zeroes. */
  readonly zero: boolean
  /** The bitmap's bit; undefined where no bitmap was asked for. */
  readonly dirty?: boolean | undefined
}

/** Takes the ranges in order and gives the lines, so that a map of any length is written as it comes. */
export interface MapWriter {
  begin(): string
  range(range: MapRange): string
  end(): string
}

/** An array with an object on each line, its members those of qemu-img 7.2 and, with a bitmap, `dirty`. */
export class JsonMap implements MapWriter {
  #first = true

  begin() {
    return '['
  }

  range({ offset, length, hole, zero, dirty }: MapRange) {
    const place = `"start": ${offset}, "length": ${length}, "depth": 0, "present": true, "zero": ${zero}, "data": ${!hole}, "offset": ${offset}`
    const before = this.#first ? '' : ',\n'
    this.#first = false
    return `${before}{ ${place}${dirty === undefined ? '' : `, "dirty": ${dirty}`}}`
  }

  end() {
    return ']\n'
  }
}

export class MapTable implements MapWriter {
  readonly #width: number
  readonly #totals = new Map<string, number>()
  #ranges = 0
  #changed = 0

  constructor(
    private readonly size: number,
    private readonly withBitmap: boolean,
  ) {
    this.#width = Math.max('LENGTH'.length, String(size).length)
  }

  begin() {
    return this.#line('START', 'LENGTH', 'SIZE', 'CONTENT', 'BITMAP')
  }

  range({ offset, length, hole, zero, dirty }: MapRange) {
    const content = contentOf(hole, zero)
    this.#ranges++
    this.#totals.set(content, (this.#totals.get(content) ?? 0) + length)
    if (dirty) this.#changed += length
    return this.#line(String(offset), String(length), formatSize(length), content, dirty ? 'changed' : '-')
  }

  end() {
    const rows = [...this.#totals].map(([what, bytes]) => ({ what, bytes }))
    if (this.withBitmap) rows.push({ what: 'changed', bytes: this.#changed })
    rows.push({ what: `total, ${plural(this.#ranges, 'range')}`, bytes: this.size })
    const totals = table(rows, [
      { title: 'BYTES', right: true, of: ({ bytes }) => bytes },
      { title: 'SIZE', right: true, of: ({ bytes }) => formatSize(bytes) },
      { title: 'SHARE', right: true, of: ({ bytes }) => formatShare(bytes, this.size) },
      { title: 'CONTENT', of: ({ what }) => what },
    ])
    return `\n${totals}`
  }

  #line(start: string, length: string, size: string, content: string, bitmap: string) {
    const cells = [start.padStart(this.#width), length.padStart(this.#width), size.padStart(8)]
    return `${[...cells, ...(this.withBitmap ? [content.padEnd(7), bitmap] : [content])].join('  ')}\n`
  }
}

/** Allocated zeroes are zeroes that take space; a hole that reads as anything else is a server's way to say "below". */
const contentOf = (hole: boolean, zero: boolean) => (zero ? (hole ? 'hole' : 'zero') : hole ? 'absent' : 'data')
