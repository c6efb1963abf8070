// How many references to each host cluster have been found: 16 bits each, in pages that are made when one of their clusters is referred to.

import { OutOfMemory } from '../../../base/system-fault.ts'

const PAGE = 1024
/** As many pages as half of a GiB holds: a file full of wild references must not take more. */
const MOST_PAGES = (512 << 20) / (2 * PAGE)
const MANY = 0xffff

export class ReferenceCounts {
  readonly #pages = new Map<number, Uint16Array>()
  /** Of clusters with so many references that 16 bits do not hold them. */
  readonly #many = new Map<number, number>()

  get(cluster: number): number {
    const count = this.#pages.get(Math.floor(cluster / PAGE))?.[cluster % PAGE] ?? 0
    return count === MANY ? this.#many.get(cluster)! : count
  }

  add(cluster: number, count: number) {
    const total = this.get(cluster) + count
    const page = this.#page(Math.floor(cluster / PAGE))
    page[cluster % PAGE] = Math.min(total, MANY)
    if (total >= MANY) this.#many.set(cluster, total)
  }

  /** The clusters with references, upwards. */
  *clusters(): Generator<number> {
    for (const index of [...this.#pages.keys()].sort((a, b) => a - b)) {
      const page = this.#pages.get(index)!
      for (let at = 0; at < PAGE; at++) if (page[at]! > 0) yield index * PAGE + at
    }
  }

  /** One behind the last of them. */
  get end(): number {
    let last = -1
    for (const cluster of this.clusters()) last = cluster
    return last + 1
  }

  #page(index: number) {
    const known = this.#pages.get(index)
    if (known) return known
    if (this.#pages.size >= MOST_PAGES)
      throw new OutOfMemory('the image refers to more places than can be counted in 512 MiB of memory')
    const page = new Uint16Array(PAGE)
    this.#pages.set(index, page)
    return page
  }
}
