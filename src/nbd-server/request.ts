// One request of the transmission phase as it stands on the wire.

import { extendedRequest, request as compactRequest } from 'nbd-client-ts/protocol'

/** Cookie and offset are kept as halves too, to be written back unchanged: they may be any 64 bits. */
export class Request {
  constructor(
    readonly type: number,
    readonly flags: number,
    readonly cookieHigh: number,
    readonly cookieLow: number,
    readonly offsetHigh: number,
    readonly offsetLow: number,
    /** Bytes. 2^53 and more is not exact, and never becomes less. */
    readonly length: number,
  ) {}

  /** Bytes. 2^53 and more is not exact, and never becomes less. */
  get offset() {
    return this.offsetHigh * 2 ** 32 + this.offsetLow
  }
}

const { at: compact } = compactRequest
const { at: extended } = extendedRequest

/** The tables' own `decode` would make a bigint and an object for what happens a hundred thousand times a second. */
export function decodeRequest(bytes: Buffer, at: number, isExtended: boolean): Request {
  const fields = isExtended ? extended : compact
  const length = bytes.readUInt32BE(at + fields.length)
  return new Request(
    bytes.readUInt16BE(at + fields.type),
    bytes.readUInt16BE(at + fields.flags),
    bytes.readUInt32BE(at + fields.cookie),
    bytes.readUInt32BE(at + fields.cookie + 4),
    bytes.readUInt32BE(at + fields.offset),
    bytes.readUInt32BE(at + fields.offset + 4),
    isExtended ? length * 2 ** 32 + bytes.readUInt32BE(at + fields.length + 4) : length,
  )
}
