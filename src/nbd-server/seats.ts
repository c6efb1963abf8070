// How many clients an export has, where it is said how many it may have, and whether one of them may write.
//
// A seat is taken as a client chooses the export, and given back when the last of its requests is done. So nothing that a former writer has asked
// for comes after the next one was let in, and a connection that is gone leaves nothing taken.

import type { Export } from './export.ts'

export interface Seat extends Disposable {
  /** Whoever has it may write. */
  readonly writes: boolean
}

class Seats {
  #taken = 0
  #hasWriter = false

  constructor(private readonly limits: Pick<Export, 'maxClients' | 'singleWriter'>) {}

  get isFull() {
    return this.#taken >= (this.limits.maxClients ?? Infinity)
  }

  /** There is no other writer that must be the only one. */
  get mayWrite() {
    return !(this.limits.singleWriter === true && this.#hasWriter)
  }

  take(writes: boolean): Seat {
    this.#taken++
    if (writes) this.#hasWriter = true
    let isTaken = true
    return {
      writes,
      [Symbol.dispose]: () => {
        if (!isTaken) return
        isTaken = false
        this.#taken--
        if (writes) this.#hasWriter = false
      },
    }
  }
}

const all = new WeakMap<Export, Seats>()

/** Over all servers that have it. */
export function seatsOf(wanted: Export): Seats {
  let seats = all.get(wanted)
  if (!seats) all.set(wanted, (seats = new Seats(wanted)))
  return seats
}
