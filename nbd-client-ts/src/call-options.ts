// What a client's calls may be told, and what it tells by itself.

import type { NbdError } from './errors.ts'

export interface CallOptions {
  /** Stops waiting: the promise rejects with the signal's reason. What was sent to the server may still happen. */
  readonly signal?: AbortSignal
}

export interface ReadOptions extends CallOptions {
  /** The server shall answer in one piece, or with EOVERFLOW. Needs a server that offers it. */
  readonly df?: boolean
}

export interface WriteOptions extends CallOptions {
  /** Durable before it is done. Where the server has no FUA, a flush follows. */
  readonly fua?: boolean
}

export interface ZeroOptions extends WriteOptions {
  /** The range must stay allocated. */
  readonly noHole?: boolean
  /** Rather fail with ENOTSUP at once than be as slow as a write. */
  readonly fast?: boolean
}

export interface ExtentsOptions extends CallOptions {
  /** Default: from 0 to the end. */
  readonly offset?: number
  readonly length?: number
  /** Default: all that were agreed on. */
  readonly contexts?: readonly string[]
  /** Neighbours that are alike become one. Default true. */
  readonly coalesce?: boolean
  /** Statuses as bigint: for contexts that use more than 53 bits. */
  readonly bigint?: boolean
}

export interface ClientEvents {
  /** There are fewer connections than there should be; the others go on. */
  degraded: [error: NbdError]
  /** The last connection is gone, and is made anew. */
  lost: [error: NbdError]
  /** It is there again. */
  reconnect: []
  /** The last connection is gone for good; or the client was closed. */
  close: [error: NbdError]
}
