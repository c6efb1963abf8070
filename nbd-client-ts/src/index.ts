// The client's main door.

export { NbdClient } from './client.ts'
export { NbdNegotiation } from './explore.ts'
export type { CallOptions, ClientEvents, ExtentsOptions, ReadOptions, WriteOptions, ZeroOptions } from './call-options.ts'
export {
  NbdConnectionError,
  NbdError,
  NbdOptionError,
  NbdProtocolError,
  NbdReplyError,
  NbdTimeoutError,
  NbdTlsError,
  NbdUnflushedError,
  NbdUriError,
  NbdUsageError,
} from './errors.ts'
export type { ReplyProblem } from './errors.ts'
export type { CopyOptions } from './copy.ts'
export type { ListedExport } from './negotiation.ts'
export type { NbdExtent } from './extents.ts'
export type { ConnectOptions, NbdTarget, ServerOptions } from './options.ts'
export type { NbdErrorName } from './protocol.ts'
export type { ReconnectOptions } from './pool.ts'
export type { SparsePart } from './read-request.ts'
export type { BlockSizes, ExportInfo, ReplyMode } from './session.ts'
export type { TlsOptions } from './tls.ts'
export { formatNbdUri, parseNbdUri } from './uri.ts'
export type { NbdAddress, NbdDial, NbdUri, UriTls } from './uri.ts'
