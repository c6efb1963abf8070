// A password or a key that somebody has given us by an id (QMP's secret object).

/** The bytes are nobody's to see by accident: not in a log, and not in an answer. */
export class Secret {
  readonly #bytes: Buffer

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  get bytes() {
    return this.#bytes
  }
}
