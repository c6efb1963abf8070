// What nodes and exports refer to by id and what is no node: throttle groups, quotas, secrets, TLS credentials (QMP's object-add).

import { InvalidParameter, NotFound } from '../base/errors.ts'

interface Entry {
  readonly type: string
  readonly value: unknown
  readonly properties: Record<string, unknown>
  readonly users: Set<object>
}

export class Objects {
  readonly #byId = new Map<string, Entry>()

  /** `properties`: what it was made of, for whoever asks for it again. */
  add(id: string, type: string, value: unknown, properties: Record<string, unknown> = {}) {
    this.checkFree(id)
    this.#byId.set(id, { type, value, properties, users: new Set() })
  }

  entries(): Iterable<readonly [id: string, entry: Omit<Entry, 'users'>]> {
    return this.#byId
  }

  /** @throws InvalidParameter, in QEMU's words */
  checkFree(id: string) {
    if (this.#byId.has(id)) throw new InvalidParameter(`attempt to add duplicate property '${id}' to object (type 'container')`)
  }

  /** Undefined where there is none: each kind of user has its own sentence for that. */
  find(id: string): unknown {
    return this.#byId.get(id)?.value
  }

  /** QMP's qom-type. */
  typeOf(id: string): string | undefined {
    return this.#byId.get(id)?.type
  }

  /** Somebody depends on the object until disposed. */
  use(id: string, user: string): Disposable {
    const users = this.#byId.get(id)?.users
    const use = { user }
    users?.add(use)
    return { [Symbol.dispose]: () => users?.delete(use) }
  }

  delete(id: string) {
    const object = this.#byId.get(id)
    if (!object) throw new NotFound(`object '${id}' not found`)
    if (object.users.size > 0) throw new InvalidParameter(`object '${id}' is in use, can not be deleted`)
    this.#byId.delete(id)
  }
}
