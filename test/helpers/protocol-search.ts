// Looks at every state of a model that can be reached, nearest first, and tells the shortest way to one in which something is lost.

import { Model, SIZE, type Cast } from './protocol-model.ts'
import { keepEssence } from './protocol-essence.ts'
import type { Fence } from './protocol-world.ts'

/** States that were seen, by 64 bits of hash, in the order in which they were. */
class Seen {
  #table: Uint32Array = new Uint32Array(1 << 20)
  #high: Uint32Array = new Uint32Array(1 << 18)
  #low: Uint32Array = new Uint32Array(1 << 18)
  count = 0

  /** Its number, or -1 where it was seen before. */
  add(state: Uint8Array) {
    let high = 0x811c9dc5
    let low = 0x9e3779b9
    for (const byte of state) {
      high = Math.imul(high ^ byte, 0x01000193)
      low = Math.imul(low ^ byte, 0x85ebca6b)
      low ^= low >>> 13
    }
    const mask = this.#table.length - 1
    for (let slot = (high ^ (low >>> 7)) & mask; ; slot = (slot + 1) & mask) {
      const entry = this.#table[slot]!
      if (entry === 0) {
        if (this.count === this.#high.length) [this.#high, this.#low] = [doubled(this.#high), doubled(this.#low)]
        this.#high[this.count] = high
        this.#low[this.count] = low
        this.#table[slot] = ++this.count
        if (this.count * 2 > this.#table.length) this.#grow()
        return this.count - 1
      }
      if (this.#high[entry - 1] === high >>> 0 && this.#low[entry - 1] === low >>> 0) return -1
    }
  }

  #grow() {
    const table = new Uint32Array(this.#table.length * 2)
    const mask = table.length - 1
    for (let entry = 0; entry < this.count; entry++) {
      let slot = (this.#high[entry]! ^ (this.#low[entry]! >>> 7)) & mask
      while (table[slot] !== 0) slot = (slot + 1) & mask
      table[slot] = entry + 1
    }
    this.#table = table
  }
}

function doubled<List extends Uint8Array | Uint32Array>(from: List): List
function doubled(from: Uint8Array | Uint32Array) {
  const into = from instanceof Uint8Array ? new Uint8Array(from.length * 2) : new Uint32Array(from.length * 2)
  into.set(from)
  return into
}

export interface Explored {
  readonly states: number
  /** False: there are more than were asked for. */
  readonly complete: boolean
  /** The shortest way to a state in which something is lost, step by step. */
  readonly story?: readonly string[]
}

/** Every state that can be reached, nearest first. */
export function explore(cast: Cast, { without, most = Infinity }: { without?: Fence; most?: number } = {}): Explored {
  const seen = new Seen()
  let parents: Uint32Array = new Uint32Array(1 << 18)
  let steps: Uint8Array = new Uint8Array(1 << 18)
  let next: Uint8Array = new Uint8Array(SIZE << 12)
  let from = 0
  let step = 0
  let first = 0 // the number of the first state that is next
  let lost: { readonly number: number; readonly what: string } | undefined
  const model = new Model(cast, without, to => {
    const taken = step++
    keepEssence(to, cast, without)
    const number = seen.add(to)
    if (number < 0) return
    if (number >= parents.length) [parents, steps] = [doubled(parents), doubled(steps)]
    parents[number] = from
    steps[number] = taken
    const what = model.violation(to)
    if (what !== undefined) lost ??= { number, what }
    if ((number - first + 1) * SIZE > next.length) next = doubled(next)
    next.set(to, (number - first) * SIZE)
  })
  keepEssence(model.first, cast, without)
  seen.add(model.first)
  let frontier: Uint8Array = model.first
  let count = 1
  while (count > 0 && !lost && seen.count < most) {
    const before = first
    first = seen.count
    for (let at = 0; at < count && !lost; at++) {
      from = before + at
      step = 0
      model.successors(frontier.subarray(at * SIZE, (at + 1) * SIZE))
    }
    count = seen.count - first
    ;[frontier, next] = [next, frontier.length > SIZE ? frontier : new Uint8Array(SIZE << 12)]
  }
  if (!lost) return { states: seen.count, complete: count === 0 }
  const way: number[] = []
  for (let number = lost.number; number !== 0; number = parents[number]!) way.unshift(steps[number]!)
  return { states: seen.count, complete: false, story: [...tell(cast, without, way), lost.what] }
}

/** The steps in words. */
function tell(cast: Cast, without: Fence | undefined, way: readonly number[]) {
  const words: string[] = []
  let state: Uint8Array | undefined
  let wanted = 0
  let step = 0
  const model = new Model(cast, without, (to, told) => {
    if (step++ !== wanted) return
    state = to.slice()
    keepEssence(state, cast, without)
    words.push(told())
  })
  keepEssence(model.first, cast, without)
  let at: Uint8Array = model.first
  for (wanted of way) {
    step = 0
    model.successors(at)
    at = state!
  }
  return words
}
