// The target contract: a place that holds named objects. It knows nothing of disks or chunks; a repository knows nothing of stores.
//
// What a target must do, whatever it is (test/helpers/target-suite.ts checks all of it):
// - An object is whole or not there. Once `put` returns, it is durable, and every later `get` and `list`, by anybody, sees it.
// - Of any number of `put`s with `ifAbsent` on one key exactly one succeeds; so too with `ifMatch` and one tag. The others get
//   PreconditionFailed and change nothing. A target that cannot do this does not have to refuse: the repository finds out (probe.ts).
// - A request whose outcome is unknown (a lost reply) fails with Unavailable; it may or may not have happened, once.
// - Keys: 1 to 512 bytes of UTF-8, parts divided by "/", no part empty, "." or "..", no control characters, and no key is the folder
//   of another. Anything else is for the target to carry: spaces, "%", "+", quotes, any language.

import { Fault, InvalidParameter, NotFound } from '../base/errors.ts'
import type { Range } from '../base/ranges.ts'

export interface PutOptions {
  /** Only when there is no such object; else PreconditionFailed. */
  readonly ifAbsent?: boolean
  /** Only when the object there has this tag; else PreconditionFailed (also when there is none). */
  readonly ifMatch?: string
  /** Nobody may delete it before (object lock). NotSupported where the target cannot promise that. */
  readonly lockUntil?: Date
  /** It is small, and makes room: a target may use what it keeps in reserve for that. */
  readonly urgent?: boolean
  /** The SHA-256 of the body in hex, where the caller knows it: saves hashing it again. */
  readonly sha256?: string
  readonly signal?: AbortSignal | undefined
}

export interface GetOptions {
  /** Shorter at the end of the object; OutOfRange when it begins at or behind the end. At least one byte. */
  readonly range?: Range | undefined
  /** As long as the range: where the body may go, so that no memory is made for it. A target need not look at it. */
  readonly into?: Uint8Array | undefined
  /** From the store itself, whatever a cache before it has: what came from there was damaged. */
  readonly fresh?: boolean
  readonly signal?: AbortSignal | undefined
}

export interface TargetEntry {
  readonly key: string
  /** Bytes. */
  readonly size: number
  /** By the clock of the store, which is the only one that all its users share. */
  readonly modified: Date
}

export interface Target extends AsyncDisposable {
  /** Where it is, for people: a path, an address. No secrets. */
  readonly location: string
  /** Its bytes may come from a cache, where they may have been damaged: asking anew (`fresh`) may help. */
  readonly isCached?: boolean
  /** The body must not change until this returns. The tag says which version it is: an equal tag, an equal object. */
  put(key: string, body: Uint8Array, options?: PutOptions): Promise<{ tag: string }>
  /** NotThere when there is no such object. The body is the caller's. */
  get(key: string, options?: GetOptions): Promise<{ body: Uint8Array; tag: string }>
  /** Every object whose key begins with the prefix (any text), by the UTF-8 bytes of the key; from behind `after`, where given. */
  list(
    prefix: string,
    options?: { readonly after?: string; readonly signal?: AbortSignal | undefined },
  ): AsyncIterable<TargetEntry>
  /** What is not there is deleted already. When it fails some may be gone. */
  delete(keys: readonly string[], options?: { readonly signal?: AbortSignal | undefined }): Promise<void>
}

/** There is no such object. */
export class NotThere extends Fault {
  constructor(readonly key: string) {
    super(`there is no object '${key}'`)
  }
}

/** Where the objects are to be there is nothing at all: no such folder, no such bucket. */
export class NoPlace extends NotFound {
  override readonly exitCode = 10
  /** Whoever reads a disk from it did nothing wrong, and may try again. */
  override readonly nbdError = 'EIO'
}

/** The object is there, or is not the version that was to be replaced: somebody else was first. */
export class PreconditionFailed extends Fault {
  constructor(readonly key: string) {
    super(`object '${key}' is not as expected: somebody else has written it`)
  }
}

/** The store knows who asks and says no: wrong key, no permission, a locked object. Trying again does not help. */
export class Denied extends Fault {}

/** The store did not answer, or asks to come back later. What was asked may or may not have happened. */
export class Unavailable extends Fault {}

const MAX_KEY_BYTES = 512

/** Throws InvalidParameter for what no target has to carry. Targets call it first. */
export function checkKey(key: string) {
  if (key === '' || Buffer.byteLength(key) > MAX_KEY_BYTES)
    throw new InvalidParameter(`a key has 1 to ${MAX_KEY_BYTES} bytes, not ${Buffer.byteLength(key)}`)
  // oxlint-disable-next-line no-control-regex -- they are what is looked for
  if (/[\u0000-\u001f\u007f]/.test(key) || !key.isWellFormed())
    throw new InvalidParameter(`the key ${JSON.stringify(key)} has characters that not every store can name`)
  if (key.split('/').some(part => part === '' || part === '.' || part === '..'))
    throw new InvalidParameter(`the key '${key}' has a part that is empty, "." or ".."`)
}

/** The order that `list` keeps. */
export const compareKeys = (a: string, b: string) => Buffer.compare(Buffer.from(a), Buffer.from(b))

/** Throws when `options` ask for both conditions at once, or for a range without a byte. */
export function checkPut({ ifAbsent, ifMatch }: PutOptions) {
  if (ifAbsent && ifMatch !== undefined) throw new InvalidParameter('ifAbsent and ifMatch exclude each other')
}

/** The same target, all of whose puts are urgent. */
export const urgently = (target: Target): Target => ({
  location: target.location,
  ...(target.isCached !== undefined && { isCached: target.isCached }),
  put: (key, body, options) => target.put(key, body, { ...options, urgent: true }),
  get: (key, options) => target.get(key, options),
  list: (prefix, options) => target.list(prefix, options),
  delete: (keys, options) => target.delete(keys, options),
  [Symbol.asyncDispose]: () => target[Symbol.asyncDispose](),
})
