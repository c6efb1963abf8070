// An export: a disk under a name that NBD clients ask for.

import type { BlockIo } from '../block/driver.ts'
import type { Context } from './context.ts'

export interface Export {
  /** Its name in the control socket. */
  readonly id: string
  /** Its name on the wire, at most 4096 bytes of UTF-8. */
  readonly name: string
  /** For people who list the exports; at most 4096 bytes. */
  readonly description?: string | undefined
  readonly writable: boolean
  /** Every write is durable before it is answered (QMP's `writethrough`). */
  readonly writethrough?: boolean | undefined
  /** Already checked for permission. A connection sees the size that it has when the connection chooses the export. */
  readonly io: BlockIo
  /** What it answers about ranges, in the order a client is told of them. */
  readonly contexts: readonly Context[]
  /** More clients than these are turned away. Default: as many as come. */
  readonly maxClients?: number | undefined
  /** One client at a time may write; to others it is read-only until that one has gone. */
  readonly singleWriter?: boolean | undefined
  /** Where TLS is there to be had, this is to be had over TLS only. */
  readonly tlsOnly?: boolean | undefined
}
