// The exports of a server by name, added and removed while clients are connected.
//
// What is removed is gone for new clients at once. Requests in flight finish; when none is left nobody calls the export's node any
// more, and `remove` is done. Connections stay a moment longer, to answer whatever comes with ESHUTDOWN; where the export comes back, they stay
// silent until it is there (`suspend`).

import { MAX_STRING } from 'nbd-client-ts/protocol'
import { Busy, InvalidParameter, NotFound } from '../base/errors.ts'
import { patiently } from '../base/patience.ts'
import type { Export } from './export.ts'

/** A connection that uses an export. */
export interface User {
  /** Start no more requests; `release` follows when those in flight are done. */
  shutDown(): void
  /** The same, but what comes gets no answer, not even a refusal; the connection ends when `ready` is done. */
  part(ready: Promise<void>): void
}

interface Entry {
  readonly export: Export
  readonly users: Set<User>
  /** There once it is being removed. */
  unused?: PromiseWithResolvers<void>
}

/** `safe` refuses while clients are connected, `hard` closes their connections (QMP's BlockExportRemoveMode). */
export type RemoveMode = 'safe' | 'hard'

export class Exports implements Iterable<Export> {
  /** What a client gets that asks for no name at all; undefined: an export called '', where there is one. */
  readonly #defaultName: string
  /** By id, for as long as anybody uses it. */
  readonly #entries = new Map<string, Entry>()
  /** By name, for new clients. */
  readonly #names = new Map<string, Entry>()
  /** Of those that are about to be there, or about to go. */
  readonly #reserved = new Set<string>()

  constructor({ defaultName = '' }: { defaultName?: string } = {}) {
    this.#defaultName = defaultName
  }

  add(added: Export) {
    this.#check(added)
    const entry = { export: added, users: new Set<User>() }
    this.#entries.set(added.id, entry)
    this.#names.set(added.name, entry)
  }

  /** Takes the name for one that is added when this has been disposed of. @throws as `add` */
  reserve(wanted: Export): Disposable {
    this.#check(wanted)
    return this.#reserveName(wanted.name)
  }

  /** No new client finds it until this has been disposed of, or it is removed; its name stays taken. @throws as `remove` */
  hide(id: string, mode: RemoveMode = 'safe'): Disposable {
    const entry = this.#removable(id, mode)
    const { name } = entry.export
    const reserved = this.#reserveName(name)
    this.#names.delete(name)
    return {
      [Symbol.dispose]: () => {
        reserved[Symbol.dispose]()
        this.#names.set(name, entry)
      },
    }
  }

  #reserveName(name: string): Disposable {
    this.#reserved.add(name)
    return { [Symbol.dispose]: () => this.#reserved.delete(name) }
  }

  #check({ id, name, description = '' }: Export) {
    if (this.#entries.has(id)) throw new InvalidParameter(`Block export id '${id}' is already in use`)
    this.checkFree(name)
    for (const [what, text] of Object.entries({ 'export name': name, description })) {
      if (Buffer.byteLength(text) > MAX_STRING) throw new InvalidParameter(`${what} '${text}' too long`)
      if (text.includes('\0')) throw new InvalidParameter(`${what} of '${id}' must have no NUL: clients cannot ask for it`)
    }
  }

  /** @throws InvalidParameter when an export is called so on the wire */
  checkFree(name: string) {
    if (this.#names.has(name) || this.#reserved.has(name))
      throw new InvalidParameter(`NBD server already has export named '${name}'`)
  }

  /** Done when nobody uses it any more. */
  async remove(id: string, mode: RemoveMode = 'safe') {
    const entry = this.#removable(id, mode)
    entry.unused = Promise.withResolvers()
    this.#names.delete(entry.export.name)
    for (const user of entry.users) user.shutDown()
    if (entry.users.size > 0) await entry.unused.promise
    this.#entries.delete(id)
  }

  /**
   * Removes one that is about to be there again. Guests whose clients connect again (QEMU's reconnect-delay) notice nothing: what they ask for
   * meanwhile is not refused, and their connections end when this is disposed of, so that they find the new one at once.
   * @throws Busy where requests do not end in time: it is there as before, and clients connect again to the same
   */
  async suspend(id: string, patienceMs: number): Promise<Disposable> {
    const entry = this.#removable(id, 'hard')
    const ready = Promise.withResolvers<void>()
    entry.unused = Promise.withResolvers()
    this.#names.delete(entry.export.name)
    for (const user of entry.users) user.part(ready.promise)
    try {
      if (entry.users.size > 0) await patiently(patienceMs, entry.unused.promise, seconds => late(id, seconds))
    } catch (error) {
      delete entry.unused
      this.#names.set(entry.export.name, entry)
      ready.resolve()
      throw error
    }
    this.#entries.delete(id)
    return { [Symbol.dispose]: ready.resolve }
  }

  #removable(id: string, mode: RemoveMode): Entry {
    const entry = this.#entries.get(id)
    if (!entry) throw new NotFound(`Export '${id}' is not found`)
    if (entry.unused || this.#names.get(entry.export.name) !== entry) throw new Busy(`Export '${id}' is already shutting down`)
    if (mode === 'safe' && entry.users.size > 0) throw new Busy(`export '${id}' still in use`)
    return entry
  }

  find(name: string): Export | undefined {
    return (this.#names.get(name) ?? (name === '' ? this.#names.get(this.#defaultName) : undefined))?.export
  }

  /** Undefined when it was removed in the meantime. Whoever uses it disposes of this when its last request is done. */
  use(wanted: Export, user: User): Disposable | undefined {
    const entry = this.#entries.get(wanted.id)
    if (entry?.export !== wanted || entry.unused) return undefined
    entry.users.add(user)
    return {
      [Symbol.dispose]: () => {
        entry.users.delete(user)
        if (entry.users.size === 0) entry.unused?.resolve()
      },
    }
  }

  /** How many connections use it. */
  usersOf(id: string) {
    return this.#entries.get(id)?.users.size ?? 0
  }

  isShuttingDown(id: string) {
    return this.#entries.get(id)?.unused !== undefined
  }

  /** All that are to be had, in the order they were added. */
  *[Symbol.iterator]() {
    for (const { export: one } of this.#names.values()) yield one
  }
}

const late = (id: string, seconds: number) =>
  new Busy(`requests on export '${id}' did not end within ${seconds} s; look at the disk below, then try again`)
