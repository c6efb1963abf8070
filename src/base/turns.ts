// A turn for whoever changes what others look at: one at a time, in the order they asked, as in a program with one main loop.
//
// Commands, and what happens by itself (a job that concludes, a timer that fires), each do their whole work in a turn, so none ever
// sees another's half. Whoever is in a turn must not take one: it would wait for itself.

export class Turns {
  #last: Promise<unknown> = Promise.resolve()

  /** Does the work alone, after all that asked before, whether those succeeded or not. */
  take<Result>(work: () => Result | Promise<Result>): Promise<Result> {
    const mine = this.#last.then(work)
    // What the work throws is for the caller; who comes next only waits for the end.
    this.#last = mine.then(nothing, nothing)
    return mine
  }
}

const nothing = () => undefined
