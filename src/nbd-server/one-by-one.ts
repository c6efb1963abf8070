// A client that asks for one thing after the other: nothing else is to be done while the disk works for it, and while its next request is awaited, so
// the event loop stays awake for both (base/vigil.ts). With many requests in flight there is always something to do, and the disk's threads and the
// client want the processors.

import { Vigil } from '../base/vigil.ts'

/** After so many requests without company a client is taken for such a one. */
const SURE = 32

export class OneByOne {
  #alone = 0
  readonly #disk = new Vigil()
  readonly #client = new Vigil()

  /** One more request is in flight, of so many. */
  asked(inFlight: number) {
    this.#client.end()
    this.#alone = inFlight > 1 ? 0 : this.#alone + 1
  }

  /** It is done by others, and not at once. */
  runs() {
    if (this.#alone >= SURE) this.#disk.begin()
  }

  ran() {
    this.#disk.end()
  }

  /** All that was in flight is answered. */
  answered() {
    if (this.#alone >= SURE) this.#client.begin()
  }
}
