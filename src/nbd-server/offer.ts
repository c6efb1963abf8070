// What an export offers to a connection: its size, its flags, its block sizes. The one place that says which command is offered.

import { PORTABLE_PAYLOAD, TransmissionFlag as Flag } from 'nbd-client-ts/protocol'
import type { Export } from './export.ts'

/** How replies look: simple ones only, structured ones, or those with extended headers. */
export type ReplyMode = 'simple' | 'structured' | 'extended'

/** Any size and alignment will do; larger requests are served better than many small ones. */
export const BLOCK_SIZES = { minimum: 1, preferred: 4096, maximum: PORTABLE_PAYLOAD } as const

/** The longest payload that is accepted of a write, and the longest read that is served, in bytes. */
export const MAX_PAYLOAD = 64 << 20

export interface OfferTerms {
  readonly mode: ReplyMode
  /** Flushes on one connection cover the writes of all others, so clients may have several; false: there is to be only one. */
  readonly multiConn: boolean
  /** The client has chosen metadata contexts. */
  readonly contexts: boolean
}

export function transmissionFlags({ writable }: Pick<Export, 'writable'>, { mode, multiConn, contexts }: OfferTerms): number {
  return (
    Flag.HAS_FLAGS |
    Flag.SEND_FLUSH |
    Flag.SEND_FUA |
    Flag.SEND_CACHE |
    (writable ? Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES | Flag.SEND_FAST_ZERO : Flag.READ_ONLY) |
    (mode === 'simple' ? 0 : Flag.SEND_DF) |
    (multiConn ? Flag.CAN_MULTI_CONN : 0) |
    (mode === 'extended' && contexts ? Flag.BLOCK_STATUS_PAYLOAD : 0)
  )
}
