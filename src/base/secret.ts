// A password or a key that somebody has given us by an id (QMP's secret object).

import { InvalidParameter } from './errors.ts'

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

/** What was found by an id. @throws InvalidParameter, in QEMU's words */
export function asSecret(found: unknown, id: string): Secret {
  if (found === undefined) throw new InvalidParameter(`No secret with id '${id}'`)
  if (!(found instanceof Secret)) throw new InvalidParameter(`Object with id '${id}' is not a secret`)
  return found
}
