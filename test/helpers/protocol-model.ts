// The protocol of writers, a collector, a reader and somebody who forgets, as a machine with few states, of which every one that can be
// reached is looked at: whatever the order of their requests, whoever stops at any of them for ever or for as long as others take to call
// it dead, and however late the store deletes what it was told to delete.
//
// It has a blob that the first restore point holds (a) and one that only a new backup brings (b). A step is one request to the store
// that others could notice. What the product does between two of them (src/repository/collector.ts, writer.ts, reader.ts) is part of the
// step before. That somebody dies needs no step: it takes no more of them. That somebody sleeps needs none either: the collector may take
// anybody for dead at any time. Not modelled: a tombstone is never removed (the collector waits longer than anybody sleeps between two
// requests), and nobody repacks (that the random histories do).

import type { Fence } from './protocol-world.ts'

export interface Cast {
  /** `a`: backs up a, and shares it where it may; `parent`: what the newest restore point holds; `b`: something new. */
  readonly writers: readonly ('a' | 'parent' | 'b')[]
  readonly reader: boolean
  /** How many collections there are, one after another, and how often a collector dies and another one goes on. */
  readonly collections: number
  readonly deaths: number
}

const A = 1
const B = 2
const BLOBS = [A, B]

// --- a state is a few bytes ---------------------------------------------------------------------------------------------------------

export const PACKS = 4 // that of the first restore point, and one for each writer
let bytes = 0
const one = () => bytes++
const each = (count: number) => (bytes += count) - count

export const EPOCH = one()
export const PHASE = one() // of the plan: 0 none, 1 condemned, 2 final
export const PLAN = one() // packs, as bits
export const THROUGH = one() // of the index; 0 is none
export const COMPACT = one() // packs, as bits
export const EXIST = one()
export const DELTAS = one() // packs that a delta of the index names
export const DELETING = one() // packs that the store was told to delete
export const ENDING = one() // sessions of writers that it was told to delete, as bits
export const DELTA_EPOCH = each(PACKS)
export const CONTENT = each(PACKS) // blobs, as bits
export const POINT = each(PACKS) // 0 none, 1 there, 2 forgotten
export const NEED = each(PACKS) // blobs, as bits
export const SESSION = each(PACKS) // of writer 1 to 3: 0 none, 1 active, 2 committed, 3 expired; of 0: the reader's
export const SESSION_EPOCH = each(PACKS)
export const AT = each(PACKS) // the writer's next step
export const SEEN_EPOCH = each(PACKS)
export const AVOID = each(PACKS) // packs, as bits; of 0: the reader's
export const PARENT = each(PACKS) // blobs, as bits; of 0: where the reader has found what it reads (packs, as bits)
export const READER_AT = one()
export const READER_POINT = one()
export const READER_AGAIN = one()
export const FORGET_AT = one()
export const FORGET_POINT = one()
export const COLLECT_AT = one()
export const COLLECT_LIST = one() // sessions, as bits; or blobs
export const COLLECT_USED = one()
export const COLLECT_TAG = one()
export const COLLECTIONS = one()
export const DEATHS = one()
export const SIZE = bytes

/** Who is next, and with what. Yields each state that one step leads to, and says what the step was. */
export class Model {
  readonly first = new Uint8Array(SIZE)
  readonly #state = new Uint8Array(SIZE)

  constructor(
    readonly cast: Cast,
    readonly without: Fence | undefined,
    /** Given the state that a step leads to, which is valid only meanwhile, and how to say the step. */
    private readonly emit: (next: Uint8Array, told: () => string) => void,
  ) {
    this.first[EXIST] = this.first[DELTAS] = 1
    this.first[CONTENT] = this.first[NEED] = A
    this.first[POINT] = 1
    this.first[READER_AT] = cast.reader ? 0 : 9
    for (let writer = 1; writer < PACKS; writer++) this.first[AT + writer] = writer <= cast.writers.length ? 0 : 9
  }

  successors(from: Uint8Array) {
    for (let writer = 1; writer <= this.cast.writers.length; writer++) this.#writer(from, writer)
    this.#collector(from)
    if (this.cast.reader) this.#reader(from)
    this.#forgetter(from)
    // The store deletes when it likes.
    for (let bit = 0; bit < PACKS; bit++) {
      if (from[DELETING]! & (1 << bit))
        this.#step(
          from,
          'store',
          () => `deletes pack ${bit}`,
          to => ((to[EXIST]! &= ~(1 << bit)), (to[DELETING]! &= ~(1 << bit))),
        )
      if (from[ENDING]! & (1 << bit))
        this.#step(
          from,
          'store',
          () => `deletes session ${bit}`,
          to => ((to[SESSION + bit] = 0), (to[ENDING]! &= ~(1 << bit))),
        )
    }
  }

  /** Undefined where every restore point has all that it needs. */
  violation(state: Uint8Array): string | undefined {
    const index = indexOf(state)
    const avoid = state[PHASE] ? state[PLAN]! : 0
    for (let point = 0; point < PACKS; point++) {
      if (!isPoint(state, point)) continue
      for (const blob of BLOBS) {
        if (!(state[NEED + point]! & blob)) continue
        const pack = placeOf(state, blob, index, avoid)
        const name = blob === A ? 'a' : 'b'
        if (pack < 0) return `restore point ${point} needs ${name}, which is nowhere`
        if (!(state[EXIST]! & (1 << pack))) return `restore point ${point} needs pack ${pack}, which is gone`
        if (state[PHASE] === 2 && avoid & (1 << pack)) return `restore point ${point} needs pack ${pack}, which is to be deleted`
      }
    }
    if (state[READER_AT] === 8) return 'a reader has lost what it reads'
    return undefined
  }

  #step(from: Uint8Array, who: string, what: () => string, change: (to: Uint8Array) => void) {
    const to = this.#state
    to.set(from)
    change(to)
    this.emit(to, () => `${who} ${what()}`)
  }

  #writer(from: Uint8Array, me: number) {
    const { without } = this
    const wants = this.cast.writers[me - 1]!
    const at = from[AT + me]!
    const step = (what: string, change: (to: Uint8Array) => void) => this.#step(from, `writer ${me}`, () => what, change)
    const read = (to: Uint8Array) => {
      to[SEEN_EPOCH + me] = to[EPOCH]!
      to[AVOID + me] = without !== 'avoid condemned' && to[PHASE] ? to[PLAN]! : 0
    }
    if (at === 0) step('reads the state', to => ((to[AT + me] = 1), read(to)))
    // Once more where the epoch has moved: a swap, which fails where it was taken for dead.
    if (at === 1 && from[SESSION + me]! < 2)
      step('begins its session', to => {
        to[SESSION + me] = 1
        to[SESSION_EPOCH + me] = to[SEEN_EPOCH + me]!
        to[AT + me] = wants === 'parent' ? 2 : 3
      })
    if (at === 2)
      for (let point = 0; point < PACKS; point++)
        if (isPoint(from, point))
          step(`takes restore point ${point} for its parent`, to => ((to[PARENT + me] = to[NEED + point]!), (to[AT + me] = 3)))
    if (at === 3)
      step('reads the state again', to => {
        if (without !== 'pin epoch') read(to)
        to[AT + me] = to[SEEN_EPOCH + me] === to[SESSION_EPOCH + me] ? 4 : 1
      })
    if (at === 4)
      step('loads the index', to => {
        const index = indexOf(to)
        const need = wants === 'a' ? A : wants === 'b' ? B : to[PARENT + me]!
        let upload = 0
        for (const blob of BLOBS) {
          if (!(need & blob) || (wants === 'parent' && without === 'avoid in parent')) continue
          const place = placeOf(to, blob, index, to[AVOID + me]!)
          if (place < 0 || to[AVOID + me]! & (1 << place)) upload |= blob
        }
        to[NEED + me] = need
        to[CONTENT + me] = upload
        to[AT + me] = upload ? 5 : 7
      })
    if (at === 5) step('uploads its pack', to => ((to[EXIST]! |= 1 << me), (to[AT + me] = 6)))
    if (at === 6)
      step('writes its index', to => {
        to[DELTAS]! |= 1 << me
        to[DELTA_EPOCH + me] = to[SESSION_EPOCH + me]!
        to[AT + me] = 7
      })
    if (at === 7 && (from[SESSION + me] === 1 || without === 'swap commit'))
      step('commits', to => ((to[SESSION + me] = 2), (to[AT + me] = 8)))
    if (at === 8)
      step('writes its restore point, and ends its session', to => {
        finish(to, me)
        to[AT + me] = 9
      })
  }

  #reader(from: Uint8Array) {
    const at = from[READER_AT]!
    const point = from[READER_POINT]!
    const step = (what: string, change: (to: Uint8Array) => void) => this.#step(from, 'reader', () => what, change)
    const end = (to: Uint8Array) => ((to[READER_AT] = 9), (to[SESSION] = 0))
    if (at === 0)
      for (let point = 0; point < PACKS; point++)
        if (isPoint(from, point)) step(`chooses restore point ${point}`, to => ((to[READER_AT] = 1), (to[READER_POINT] = point)))
    if (at === 1) step('pins it', to => ((to[SESSION] = 1), (to[READER_AT] = this.without === 'look after pin' ? 3 : 2)))
    if (at === 2) step('looks whether it is there', to => (isPoint(to, point) ? (to[READER_AT] = 3) : end(to)))
    if (at === 3) step('reads the state', to => ((to[AVOID] = to[PHASE] ? to[PLAN]! : 0), (to[READER_AT] = 4)))
    if (at === 4)
      step('loads the index', to => {
        const index = indexOf(to)
        to[PARENT] = 0
        to[READER_AT] = 5
        for (const blob of BLOBS) {
          if (!(to[NEED + point]! & blob)) continue
          const place = placeOf(to, blob, index, to[AVOID]!)
          if (place >= 0) to[PARENT]! |= 1 << place
          else to[READER_AT] = to[READER_AGAIN] ? 8 : 6
        }
        if (to[READER_AT] === 6) to[READER_AGAIN] = 1
      })
    if (at === 5) {
      const gone = from[PARENT]! & ~from[EXIST]!
      if (!gone) step('has read all, and ends', end)
      else if (from[READER_AGAIN]) step('does not find what it reads', to => (to[READER_AT] = 8))
      else step('finds something gone', to => ((to[READER_AGAIN] = 1), (to[READER_AT] = 6)))
    }
    // It says that it is there; one that was taken for dead pins and looks again.
    if (at === 6)
      step(
        from[SESSION] === 3 ? 'pins again' : 'is alive',
        to => ((to[READER_AT] = to[SESSION] === 3 ? 2 : 3), (to[SESSION] = 1)),
      )
  }

  /** Forgets any restore point that nobody reads, one after another. Whoever does finishes commits before. */
  #forgetter(from: Uint8Array) {
    const step = (what: string, change: (to: Uint8Array) => void) => this.#step(from, 'forgetter', () => what, change)
    for (let writer = 1; writer <= this.cast.writers.length; writer++)
      if (from[SESSION + writer] === 2 && from[POINT + writer] === 0)
        step(`writes the restore point of writer ${writer}`, to => finish(to, writer))
    const forget = (point: number) =>
      step(`forgets restore point ${point}`, to => {
        to[FORGET_AT] = 0
        to[FORGET_POINT] = 0
        if (from[POINT + point] === 1) to[POINT + point] = this.without === 'tombstone' ? 0 : 2
      })
    if (from[FORGET_AT] === 0)
      for (let point = 0; point < PACKS; point++) {
        if (from[POINT + point] !== 1 || (from[SESSION] === 1 && from[READER_POINT] === point)) continue
        // Nobody can come in between to read it.
        if (from[READER_AT] === 9 || (from[READER_AT] !== 0 && from[READER_POINT] !== point)) forget(point)
        else step(`wants to forget restore point ${point}`, to => ((to[FORGET_AT] = 1), (to[FORGET_POINT] = point)))
      }
    if (from[FORGET_AT] === 1) forget(from[FORGET_POINT]!)
  }

  #collector(from: Uint8Array) {
    const { without } = this
    const at = from[COLLECT_AT]!
    const step = (what: string, change: (to: Uint8Array) => void) => this.#step(from, 'collector', () => what, change)
    const goOn = (to: Uint8Array, next: number) => {
      to[COLLECT_AT] = next
      to[COLLECT_LIST] = 0
    }
    const listsSessionsFirst = without === 'order'
    const addSessions = (to: Uint8Array) => {
      if (without === 'pins') return
      for (let writer = 1; writer < PACKS; writer++) if (to[SESSION + writer] === 2) to[COLLECT_LIST]! |= to[NEED + writer]!
      if (to[SESSION] === 1) to[COLLECT_LIST]! |= to[NEED + to[READER_POINT]!]!
    }
    // Where the next one would begin with the same step it makes no difference.
    if (at > 1 && at !== 7 && at < 14 && from[DEATHS]! < this.cast.deaths)
      step('dies, and another one comes', to => {
        to[DEATHS]!++
        to[COLLECT_USED] = to[COLLECT_TAG] = 0
        goOn(to, 0)
      })
    switch (at) {
      case 0:
        if (from[PHASE] === 0 && from[COLLECTIONS]! >= this.cast.collections) return
        // A plan that is there is gone on with.
        return step('begins', to => goOn(to, to[PHASE] === 0 ? (without === 'finish commits' ? 3 : 1) : to[PHASE] === 1 ? 7 : 14))
      case 1:
      case 8:
        return step('lists committed sessions', to => {
          goOn(to, at + 1)
          for (let writer = 1; writer < PACKS; writer++) if (to[SESSION + writer] === 2) to[COLLECT_LIST]! |= 1 << writer
        })
      case 2:
      case 9:
        for (let writer = 1; writer < PACKS; writer++)
          if (from[COLLECT_LIST]! & (1 << writer))
            return step(`writes the restore point of writer ${writer}`, to => {
              if (to[SESSION + writer] !== 0) finish(to, writer)
              to[COLLECT_LIST]! &= ~(1 << writer)
            })
        return step('has finished commits', to => goOn(to, at + 1))
      case 3:
      case 10:
        return step(`lists ${listsSessionsFirst ? 'sessions' : 'restore points'}`, to => {
          goOn(to, at + 1)
          if (listsSessionsFirst) addSessions(to)
          else addPoints(to)
        })
      case 4:
      case 11:
        return step(`lists ${listsSessionsFirst ? 'restore points' : 'sessions'}`, to => {
          to[COLLECT_AT] = at + 1
          if (listsSessionsFirst) addPoints(to)
          else addSessions(to)
        })
      case 5:
      case 12:
        return step('loads the index and marks', to => {
          const index = indexOf(to)
          const avoid = to[PHASE] ? to[PLAN]! : 0
          to[COLLECT_USED] = 0
          for (const blob of BLOBS) {
            const place = to[COLLECT_LIST]! & blob ? placeOf(to, blob, index, avoid) : -1
            if (place >= 0 && !(at === 12 && without === 'mark again')) to[COLLECT_USED]! |= 1 << place
          }
          // The index that is written anew is the one that was loaded.
          if (at === 12) to[COLLECT_TAG] = index
          goOn(to, at + 1)
        })
      case 6:
        return step('lists packs, and condemns', to => {
          const condemned = to[EXIST]! & ~to[COLLECT_USED]!
          to[COLLECT_USED] = 0
          to[COLLECTIONS]!++
          if (condemned) {
            to[EPOCH]!++
            to[PHASE] = 1
            to[PLAN] = condemned
          }
          goOn(to, condemned ? 7 : 0)
        })
      case 7: {
        const next = without === 'finish commits' ? 10 : 8
        let waits = false
        for (let session = 0; session < PACKS; session++) {
          if (from[SESSION + session] !== 1) continue
          const isReader = session === 0
          if (!isReader && (without === 'wait' || from[SESSION_EPOCH + session]! >= from[EPOCH]!)) continue
          waits ||= !isReader
          const who = isReader ? 'the reader' : `writer ${session}`
          step(`finds that ${who} is silent`, to => {
            to[COLLECT_LIST] = session
            to[COLLECT_TAG] = to[SESSION_EPOCH + session]!
            to[COLLECT_AT] = 16
          })
        }
        if (!waits) step('waits for nobody', to => goOn(to, next))
        return
      }
      case 16: {
        const session = from[COLLECT_LIST]!
        return step('takes it for dead', to => {
          // The record has to be as it was read.
          const isSame = to[SESSION + session] === 1 && to[SESSION_EPOCH + session] === to[COLLECT_TAG]
          if (isSame || (without === 'fence' && to[SESSION + session] !== 0)) to[SESSION + session] = 3
          to[COLLECT_TAG] = 0
          goOn(to, 7)
        })
      }
      case 13:
        return step('puts the final plan and the new index in force', to => {
          const final = to[PLAN]! & ~to[COLLECT_USED]!
          to[PHASE] = 2
          to[PLAN] = final
          to[COMPACT] = to[COLLECT_TAG]! & ~final
          to[THROUGH] = to[EPOCH]! // the epoch before, and 1
          to[COLLECT_USED] = to[COLLECT_TAG] = 0
          goOn(to, 14)
        })
      case 14:
        return step('has packs deleted', to => ((to[DELETING]! |= to[PLAN]! & to[EXIST]!), goOn(to, 15)))
      case 15:
        return step('ends', to => ((to[PHASE] = to[PLAN] = 0), goOn(to, 0)))
    }
  }
}

/** The second half of a commit. */
export function finish(to: Uint8Array, writer: number) {
  if (to[POINT + writer] === 0) to[POINT + writer] = 1
  to[ENDING]! |= 1 << writer
}

function addPoints(to: Uint8Array) {
  for (let point = 0; point < PACKS; point++) if (to[POINT + point] === 1) to[COLLECT_LIST]! |= to[NEED + point]!
}

/** It is there for whoever looks: written, or committed and not forgotten. */
const isPoint = (state: Uint8Array, point: number) =>
  state[POINT + point] === 1 || (point > 0 && state[POINT + point] === 0 && state[SESSION + point] === 2)

/** Packs that the index names, as bits. */
export function indexOf(state: Uint8Array) {
  let index = state[COMPACT]!
  for (let pack = 0; pack < PACKS; pack++)
    if (state[DELTAS]! & (1 << pack) && state[DELTA_EPOCH + pack]! >= state[THROUGH]!) index |= 1 << pack
  return index
}

/** As blob-index.ts has it: the first place, but for one to be avoided where there is another. */
function placeOf(state: Uint8Array, blob: number, index: number, avoid: number) {
  let found = -1
  for (let pack = 0; pack < PACKS; pack++) {
    if (!(index & (1 << pack)) || !(state[CONTENT + pack]! & blob)) continue
    if (!(avoid & (1 << pack))) return pack
    if (found < 0) found = pack
  }
  return found
}
