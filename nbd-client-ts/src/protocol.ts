// The NBD protocol's numbers and records, each written once; clients and servers use them alike.
//
// Names are those of the specification (doc/proto.md of the NBD project, and its extended headers), without their prefixes:
// NBD_CMD_WRITE_ZEROES is Command.WRITE_ZEROES. Flags are masks, not bit numbers. All numbers travel big-endian.

import { offset, struct, u16, u32, u64 } from './struct.ts'

/** TCP, as IANA has it. */
export const DEFAULT_PORT = 10809

// --- Handshake --------------------------------------------------------------------------------------------------------------------

/** "NBDMAGIC" */
export const NBD_MAGIC = 0x4e42444d41474943n
/** "IHAVEOPT": second in a newstyle greeting, and first in every option. */
export const OPTION_MAGIC = 0x49484156454f5054n
/** Second in an oldstyle greeting. */
export const OLDSTYLE_MAGIC = 0x00420281861253n
export const OPTION_REPLY_MAGIC = 0x0003e889045565a9n

/** From the server in its greeting, and back from the client (NBD_FLAG_*, NBD_FLAG_C_*). */
export const HandshakeFlag = {
  FIXED_NEWSTYLE: 1 << 0,
  NO_ZEROES: 1 << 1,
} as const

/** NBD_OPT_* */
export const Option = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  /** Withdrawn; a server answers as to any unknown option. */
  PEEK_EXPORT: 4,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const

/** Set in the type of every option reply that is an error. */
export const OPTION_ERROR = 0x8000_0000

/** NBD_REP_* */
export const OptionReply = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: 0x8000_0001,
  ERR_POLICY: 0x8000_0002,
  ERR_INVALID: 0x8000_0003,
  ERR_PLATFORM: 0x8000_0004,
  ERR_TLS_REQD: 0x8000_0005,
  ERR_UNKNOWN: 0x8000_0006,
  ERR_SHUTDOWN: 0x8000_0007,
  ERR_BLOCK_SIZE_REQD: 0x8000_0008,
  ERR_TOO_BIG: 0x8000_0009,
  ERR_EXT_HEADER_REQD: 0x8000_000a,
} as const

/** NBD_INFO_* */
export const InfoType = {
  EXPORT: 0,
  NAME: 1,
  DESCRIPTION: 2,
  BLOCK_SIZE: 3,
} as const

/** The server's first bytes. */
export const greeting = struct('greeting', 18, {
  magic: u64, // NBD_MAGIC
  optionMagic: u64, // OPTION_MAGIC
  flags: u16, // HandshakeFlag
})

/** All that an oldstyle server says: there is no negotiation. */
export const oldstyleGreeting = struct('oldstyle greeting', 28, {
  magic: u64, // NBD_MAGIC
  oldstyleMagic: u64, // OLDSTYLE_MAGIC
  size: u64,
  handshakeFlags: u16,
  flags: u16, // TransmissionFlag; OLDSTYLE_ZEROES follow
})

/** Zero bytes behind an oldstyle greeting. */
export const OLDSTYLE_ZEROES = 124

/** The client's answer to the greeting. */
export const clientFlags = struct('client flags', 4, {
  flags: u32, // HandshakeFlag
})

/** Before an option's data. */
export const optionHeader = struct('option', 16, {
  magic: u64, // OPTION_MAGIC
  option: u32, // Option
  length: u32,
})

/** Before an option reply's data. */
export const optionReplyHeader = struct('option reply', 20, {
  magic: u64, // OPTION_REPLY_MAGIC
  option: u32, // the Option it answers
  type: u32, // OptionReply
  length: u32,
})

/** What follows EXPORT_NAME, which has no option reply; EXPORT_NAME_ZEROES behind it unless NO_ZEROES was agreed on. */
export const exportNameReply = struct('reply to EXPORT_NAME', 10, {
  size: offset,
  flags: u16, // TransmissionFlag
})

export const EXPORT_NAME_ZEROES = 124

/** The data of a reply INFO begins with its type; for NAME and DESCRIPTION text follows. */
export const infoHeader = struct('info', 2, {
  type: u16, // InfoType
})

export const infoExport = struct('info about the export', 12, {
  type: u16, // InfoType.EXPORT
  size: offset,
  flags: u16, // TransmissionFlag
})

export const infoBlockSize = struct('info about block sizes', 14, {
  type: u16, // InfoType.BLOCK_SIZE
  minimum: u32,
  preferred: u32,
  maximum: u32,
})

// --- Transmission -----------------------------------------------------------------------------------------------------------------

/** NBD_FLAG_*: what the export offers. */
export const TransmissionFlag = {
  HAS_FLAGS: 1 << 0,
  READ_ONLY: 1 << 1,
  SEND_FLUSH: 1 << 2,
  SEND_FUA: 1 << 3,
  ROTATIONAL: 1 << 4,
  SEND_TRIM: 1 << 5,
  SEND_WRITE_ZEROES: 1 << 6,
  SEND_DF: 1 << 7,
  CAN_MULTI_CONN: 1 << 8,
  /** An extension that nobody finished. */
  SEND_RESIZE: 1 << 9,
  SEND_CACHE: 1 << 10,
  SEND_FAST_ZERO: 1 << 11,
  BLOCK_STATUS_PAYLOAD: 1 << 12,
} as const

export const REQUEST_MAGIC = 0x2560_9513
export const SIMPLE_REPLY_MAGIC = 0x6744_6698
export const STRUCTURED_REPLY_MAGIC = 0x668e_33ef
export const EXTENDED_REQUEST_MAGIC = 0x21e4_1c71
export const EXTENDED_REPLY_MAGIC = 0x6e8a_278c

/** NBD_CMD_* */
export const Command = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
  /** An extension that nobody finished. */
  RESIZE: 8,
} as const

/** NBD_CMD_FLAG_* */
export const CommandFlag = {
  FUA: 1 << 0,
  NO_HOLE: 1 << 1,
  DF: 1 << 2,
  REQ_ONE: 1 << 3,
  FAST_ZERO: 1 << 4,
  PAYLOAD_LEN: 1 << 5,
} as const

/** NBD_REPLY_FLAG_* */
export const ReplyFlag = {
  DONE: 1 << 0,
} as const

/** Set in the type of every chunk that is an error. */
export const REPLY_ERROR = 1 << 15

/** NBD_REPLY_TYPE_* */
export const ReplyType = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  BLOCK_STATUS_EXT: 6,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const

/** The errors that travel on the wire, by the numbers the protocol gives them. */
export const nbdErrors = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const

export type NbdErrorName = keyof typeof nbdErrors

/** Offsets and lengths are all 64 bits, since a server must answer whatever they are. `Number` of them is fit for a range check: no number of 2^53 or more becomes one below. */
export const request = struct('request', 28, {
  magic: u32, // REQUEST_MAGIC
  flags: u16, // CommandFlag
  type: u16, // Command
  cookie: u64,
  offset: u64,
  length: u32,
})

export const extendedRequest = struct('extended request', 32, {
  magic: u32, // EXTENDED_REQUEST_MAGIC
  flags: u16, // CommandFlag
  type: u16, // Command
  cookie: u64,
  offset: u64,
  length: u64, // of the payload where PAYLOAD_LEN is set, of the effect where not
})

/** READ's data follows where there is no error. */
export const simpleReply = struct('simple reply', 16, {
  magic: u32, // SIMPLE_REPLY_MAGIC
  error: u32, // nbdErrors, or 0
  cookie: u64,
})

export const structuredReply = struct('structured reply', 20, {
  magic: u32, // STRUCTURED_REPLY_MAGIC
  flags: u16, // ReplyFlag
  type: u16, // ReplyType
  cookie: u64,
  length: u32, // of the payload
})

export const extendedReply = struct('extended reply', 32, {
  magic: u32, // EXTENDED_REPLY_MAGIC
  flags: u16, // ReplyFlag
  type: u16, // ReplyType
  cookie: u64,
  offset: u64, // the request's
  length: u64, // of the payload
})

/** Begins the payload of OFFSET_DATA; the data follows. */
export const offsetData = struct('OFFSET_DATA', 8, { offset })

export const offsetHole = struct('OFFSET_HOLE', 12, { offset, length: u32 })

/** Begins the payload of ERROR and of ERROR_OFFSET; the message follows, and behind it in ERROR_OFFSET an `errorOffset`. */
export const errorChunk = struct('ERROR', 6, { error: u32, messageLength: u16 })

export const errorOffset = struct('the end of ERROR_OFFSET', 8, { offset: u64 })

/** Begins the payload of BLOCK_STATUS; extents follow. */
export const blockStatus = struct('BLOCK_STATUS', 4, { contextId: u32 })

export const blockStatusExtent = struct('extent', 8, { length: u32, status: u32 })

/** Begins the payload of BLOCK_STATUS_EXT; extents follow. */
export const blockStatusExt = struct('BLOCK_STATUS_EXT', 8, { contextId: u32, count: u32 })

export const blockStatusExtExtent = struct('extended extent', 16, { length: u64, status: u64 })

/** Begins the payload of a BLOCK_STATUS request that has PAYLOAD_LEN; context ids, a u32 each, follow. */
export const blockStatusPayload = struct('payload of BLOCK_STATUS', 8, { length: u64 })

// --- Metadata contexts ------------------------------------------------------------------------------------------------------------

export const BASE_ALLOCATION = 'base:allocation'

/** The status bits of base:allocation (NBD_STATE_*). */
export const Allocation = {
  HOLE: 1 << 0,
  ZERO: 1 << 1,
} as const

/** The prefix of QEMU's contexts for dirty bitmaps; behind it stands the bitmap's name. */
export const QEMU_DIRTY_BITMAP = 'qemu:dirty-bitmap:'
export const QEMU_ALLOCATION_DEPTH = 'qemu:allocation-depth'

/** The one status bit of qemu:dirty-bitmap:* contexts. */
export const DIRTY = 1 << 0

// --- Limits -----------------------------------------------------------------------------------------------------------------------

/** Bytes of the longest string: an export's name, a query, an error's text. */
export const MAX_STRING = 4096
/** Bytes of payload that every server and every client takes where no block sizes were agreed on. */
export const PORTABLE_PAYLOAD = 32 << 20
/** Bytes of DF reads that every server serves in one chunk. */
export const DF_GUARANTEED = 64 << 10
/** Extents of one context in one reply: no more should be sent, and one known client refuses 2^20 itself. */
export const MAX_EXTENTS = (1 << 20) - 1

/** The name a table has for a number, for messages: `nameOf(Command, 3)` is "FLUSH"; a number it does not have stays one. */
export function nameOf(table: Readonly<Record<string, number>>, number: number): string {
  const name = Object.keys(table).find(name => table[name] === number)
  return name ?? (number > 9 ? `0x${number.toString(16)}` : String(number))
}
