// How answers look on the wire, in each of the three reply modes.

import {
  EXTENDED_REPLY_MAGIC,
  MAX_STRING,
  nbdErrors,
  ReplyFlag,
  ReplyType,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
  extendedReply,
  offsetData,
  offsetHole,
  simpleReply,
  structuredReply,
  errorChunk,
  errorOffset,
  type NbdErrorName,
} from 'nbd-client-ts/protocol'
import type { ReplyMode } from './offer.ts'
import type { Outbox } from './outbox.ts'
import type { Request } from './request.ts'

export class Replies {
  /** Bytes before the payload of a chunk. */
  readonly chunkHeader: number
  /** Bytes before the data of a READ, in what answers it. */
  readonly dataHeader: number
  readonly #extended: boolean

  constructor(
    private readonly outbox: Pick<Outbox, 'small' | 'large'>,
    readonly mode: ReplyMode,
  ) {
    this.#extended = mode === 'extended'
    this.chunkHeader = (this.#extended ? extendedReply : structuredReply).size
    this.dataHeader = mode === 'simple' ? simpleReply.size : this.chunkHeader + offsetData.size
  }

  /** It is done, and there is nothing more to say. */
  done(request: Request) {
    if (this.#extended) return this.#smallChunk(request, ReplyType.NONE, ReplyFlag.DONE, 0)
    const { into, at } = this.outbox.small(simpleReply.size)
    this.#simple(request, 0, into, at)
    return undefined
  }

  /** A READ of nothing needs a chunk of its own where there are chunks. */
  noData(request: Request) {
    if (this.mode === 'simple') this.done(request)
    else this.#smallChunk(request, ReplyType.NONE, ReplyFlag.DONE, 0)
  }

  /** What failed, with text where there is room for it. `offset`: where, if that is known. */
  error(request: Request, name: NbdErrorName, message: string, offset?: number) {
    const error = nbdErrors[name]
    if (this.mode === 'simple') {
      const { into, at } = this.outbox.small(simpleReply.size)
      this.#simple(request, error, into, at)
      return
    }
    const text = cut(message)
    const length = errorChunk.size + text.length + (offset === undefined ? 0 : errorOffset.size)
    const type = offset === undefined ? ReplyType.ERROR : ReplyType.ERROR_OFFSET
    const { into, at } = this.#smallChunk(request, type, ReplyFlag.DONE, length)
    const end = errorChunk.encode({ error, messageLength: text.length }, into, at) + text.length
    text.copy(into, end - text.length)
    if (offset !== undefined) errorOffset.encode({ offset: BigInt(offset) }, into, end)
  }

  /** Writes what precedes READ's data from `offset` on, so that it ends at `end`. */
  dataBefore(into: Buffer, end: number, request: Request, offset: number, length: number, last: boolean) {
    const at = end - this.dataHeader
    if (this.mode === 'simple') this.#simple(request, 0, into, at)
    else {
      const payload = this.#chunk(request, ReplyType.OFFSET_DATA, last ? ReplyFlag.DONE : 0, offsetData.size + length, into, at)
      offsetData.encode({ offset }, into, payload)
    }
  }

  /** READ's data as a chunk, from where they are. */
  data(request: Request, offset: number, data: Buffer, last: boolean) {
    const { into, at } = this.outbox.small(this.dataHeader)
    this.dataBefore(into, at + this.dataHeader, request, offset, data.length, last)
    this.outbox.large(data)
  }

  hole(request: Request, offset: number, length: number, last: boolean) {
    const { into, at } = this.#smallChunk(request, ReplyType.OFFSET_HOLE, last ? ReplyFlag.DONE : 0, offsetHole.size)
    offsetHole.encode({ offset, length }, into, at)
  }

  /** A chunk whose payload is written by the caller, header included in what is returned: it begins at `chunkHeader`. */
  chunk(request: Request, type: number, last: boolean, length: number): Buffer {
    const bytes = Buffer.allocUnsafe(this.chunkHeader + length)
    this.#chunk(request, type, last ? ReplyFlag.DONE : 0, length, bytes, 0)
    this.outbox.large(bytes)
    return bytes
  }

  #smallChunk(request: Request, type: number, flags: number, length: number) {
    const { into, at } = this.outbox.small(this.chunkHeader + length)
    return { into, at: this.#chunk(request, type, flags, length, into, at) }
  }

  /** Where its payload begins. */
  #chunk(request: Request, type: number, flags: number, length: number, into: Buffer, at: number): number {
    const fields = this.#extended ? extendedReply.at : structuredReply.at
    into.writeUInt32BE(this.#extended ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC, at + fields.magic)
    into.writeUInt16BE(flags, at + fields.flags)
    into.writeUInt16BE(type, at + fields.type)
    into.writeUInt32BE(request.cookieHigh, at + fields.cookie)
    into.writeUInt32BE(request.cookieLow, at + fields.cookie + 4)
    if (this.#extended) {
      into.writeUInt32BE(request.offsetHigh, at + extendedReply.at.offset)
      into.writeUInt32BE(request.offsetLow, at + extendedReply.at.offset + 4)
      into.writeUInt32BE(0, at + extendedReply.at.length)
      into.writeUInt32BE(length, at + extendedReply.at.length + 4)
    } else into.writeUInt32BE(length, at + structuredReply.at.length)
    return at + this.chunkHeader
  }

  #simple(request: Request, error: number, into: Buffer, at: number) {
    into.writeUInt32BE(SIMPLE_REPLY_MAGIC, at + simpleReply.at.magic)
    into.writeUInt32BE(error, at + simpleReply.at.error)
    into.writeUInt32BE(request.cookieHigh, at + simpleReply.at.cookie)
    into.writeUInt32BE(request.cookieLow, at + simpleReply.at.cookie + 4)
  }
}

/** At most MAX_STRING bytes of UTF-8 without a NUL, cut between characters. */
function cut(message: string): Buffer {
  const text = Buffer.from(message.replaceAll('\0', '?'))
  if (text.length <= MAX_STRING) return text
  let end = MAX_STRING
  while ((text[end]! & 0xc0) === 0x80) end--
  return text.subarray(0, end)
}
