// Reads the server's side of transmission: simple replies, structured chunks, extended chunks. It believes nothing.
//
// Whatever breaks the protocol is an NbdProtocolError, which ends the connection: after it nobody knows where the next reply begins.
// Nothing is allocated by an announced length; texts are cut at MAX_STRING, and extents are read page by page.

import { errorName, NbdProtocolError, peerText } from './errors.ts'
import type { Intake } from './intake.ts'
import {
  Command,
  EXTENDED_REPLY_MAGIC,
  MAX_STRING,
  REPLY_ERROR,
  ReplyFlag,
  ReplyType,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
  blockStatus,
  blockStatusExt,
  blockStatusExtExtent,
  blockStatusExtent,
  errorChunk,
  errorOffset,
  extendedReply,
  nameOf,
  offsetData,
  offsetHole,
  simpleReply,
  structuredReply,
} from './protocol.ts'
import type { Request } from './request.ts'
import type { Session } from './session.ts'

/** Who waits for replies. */
export interface Replied {
  /** The request that waits under this cookie. */
  find(high: number, low: number): Request | undefined
  /** The bytes that come now are put into this request's buffer; undefined: no longer. */
  filling(request: Request | undefined): void
  /** A chunk of its reply is over. */
  chunk(request: Request): void
  /** Its reply is over. It is not asked for again. */
  done(request: Request): void
}

/** Extents of one context in one reply that we take; the protocol advises 2^20. */
const MOST_EXTENTS = 1 << 20
/** An error's text may be 64 KiB as the field has it; an offset follows, and perhaps what a later protocol adds. */
const LONGEST_ERROR = 128 << 10

const MAGICS: Record<Session['mode'], readonly number[]> = {
  simple: [SIMPLE_REPLY_MAGIC],
  structured: [STRUCTURED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC],
  extended: [EXTENDED_REPLY_MAGIC],
}

/** A parser for an Intake; it never ends. */
export function parseReplies(intake: Intake, session: Session, replied: Replied): Generator<void, never, void> {
  return new ReplyParser(intake, session, replied).run()
}

/** One chunk, as its header has it. */
interface Chunk {
  readonly request: Request
  readonly type: number
  readonly last: boolean
  readonly length: number
}

class ReplyParser {
  readonly #page = Buffer.allocUnsafe(16 << 10)
  readonly #text = Buffer.allocUnsafe(MAX_STRING)

  constructor(
    private readonly intake: Intake,
    private readonly session: Session,
    private readonly replied: Replied,
  ) {}

  *run(): Generator<void, never, void> {
    const { intake, session } = this
    const magics = MAGICS[session.mode]
    for (;;) {
      // All replies are at least as long as a simple one.
      yield intake.view(simpleReply.size)
      const magic = intake.bytes.readUInt32BE(intake.at)
      if (!magics.includes(magic))
        throw new NbdProtocolError(
          `a reply begins with 0x${magic.toString(16)}, which is no magic number of ${session.mode} replies`,
        )
      if (magic === SIMPLE_REPLY_MAGIC) yield* this.#simple()
      else yield* this.#chunk(magic === EXTENDED_REPLY_MAGIC)
    }
  }

  *#simple() {
    const { intake, session, replied } = this
    const { bytes, at } = intake
    const error = bytes.readUInt32BE(at + simpleReply.at.error)
    const request = this.#find(bytes, at + simpleReply.at.cookie)
    if (session.mode !== 'simple' && request.command === Command.READ)
      throw new NbdProtocolError(`a simple reply to ${request.title}`)
    if (error !== 0) request.problem({ code: errorName(error), errno: error, message: '', offset: undefined })
    else if (request.command === Command.READ) yield* this.#payload(request, request.offset, request.length)
    request.answered()
    replied.done(request)
  }

  *#chunk(extended: boolean) {
    const { intake, replied } = this
    const { bytes, at } = intake
    const flags = bytes.readUInt16BE(at + structuredReply.at.flags)
    const type = bytes.readUInt16BE(at + structuredReply.at.type)
    const request = this.#find(bytes, at + structuredReply.at.cookie)
    yield intake.view((extended ? extendedReply.size : structuredReply.size) - simpleReply.size)
    const chunk = {
      request,
      type,
      last: (flags & ReplyFlag.DONE) !== 0,
      length: extended ? this.#extendedLength(request) : this.#u32(0),
    }
    yield* this.#content(chunk)
    if (chunk.last) {
      request.answered()
      replied.done(request)
    } else replied.chunk(request)
  }

  /** The second half of an extended header: the offset is the request's, the length is checked like any other later. */
  #extendedLength(request: Request) {
    const offset = this.#u64(0)
    if (offset !== request.offset) throw new NbdProtocolError(`a reply to ${request.title} has the offset ${offset}`)
    return this.#u64(8)
  }

  *#content(chunk: Chunk) {
    const { request, type, last, length } = chunk
    switch (type) {
      case ReplyType.NONE:
        this.#expect(length === 0, chunk)
        if (!last) throw new NbdProtocolError(`a chunk NONE that is not the last in reply to ${request.title}`)
        return
      case ReplyType.OFFSET_DATA: {
        this.#expect(length > offsetData.size && length - offsetData.size <= request.length, chunk)
        yield this.intake.view(offsetData.size)
        return yield* this.#payload(request, this.#u64(0), length - offsetData.size)
      }
      case ReplyType.OFFSET_HOLE:
        this.#expect(length === offsetHole.size, chunk)
        yield this.intake.view(offsetHole.size)
        return request.hole(this.#u64(0), this.#u32(offsetHole.at.length))
      case ReplyType.BLOCK_STATUS:
      case ReplyType.BLOCK_STATUS_EXT:
        return yield* this.#blockStatus(chunk)
      default:
        if (!(type & REPLY_ERROR)) throw new NbdProtocolError(`a chunk of the unknown type ${type} in reply to ${request.title}`)
        return yield* this.#error(chunk)
    }
  }

  *#payload(request: Request, offset: number, length: number): Generator<void, void, void> {
    const into = request.data(offset, length)
    if (!into) return yield this.intake.skip(length)
    this.replied.filling(request)
    yield this.intake.fill(into)
    this.replied.filling(undefined)
  }

  *#error(chunk: Chunk) {
    const { request, type, length } = chunk
    this.#expect(length >= errorChunk.size && length <= LONGEST_ERROR, chunk)
    yield this.intake.view(errorChunk.size)
    const errno = this.#u32(0)
    const messageLength = this.intake.bytes.readUInt16BE(this.intake.at + errorChunk.at.messageLength)
    if (errno === 0) throw new NbdProtocolError(`an error chunk without an error in reply to ${request.title}`)
    let rest = length - errorChunk.size - messageLength
    this.#expect(type === ReplyType.ERROR_OFFSET ? rest === errorOffset.size : rest >= 0, chunk)
    const text = this.#text.subarray(0, Math.min(messageLength, MAX_STRING))
    yield this.intake.fill(text)
    yield this.intake.skip(messageLength - text.length)
    let offset: number | undefined
    if (type === ReplyType.ERROR_OFFSET) {
      yield this.intake.view(errorOffset.size)
      rest = 0
      offset = this.#u64(0)
      if (offset < request.offset || offset > request.offset + request.length)
        throw new NbdProtocolError(`an error at offset ${offset} in reply to ${request.title}`)
    }
    yield this.intake.skip(rest)
    request.problem({ code: errorName(errno), errno, message: peerText(text), offset })
  }

  *#blockStatus(chunk: Chunk) {
    const { request, type, length } = chunk
    const { minimum } = this.session.export.blockSizes ?? { minimum: 1 }
    const extended = type === ReplyType.BLOCK_STATUS_EXT
    if (extended !== (this.session.mode === 'extended'))
      throw new NbdProtocolError(`a chunk ${nameOf(ReplyType, type)} where ${this.session.mode} replies were agreed on`)
    const head = extended ? blockStatusExt.size : blockStatus.size
    const unit = extended ? blockStatusExtExtent.size : blockStatusExtent.size
    const count = (length - head) / unit
    this.#expect(Number.isInteger(count) && count >= 1 && count <= MOST_EXTENTS, chunk)
    yield this.intake.view(head)
    const id = this.#u32(0)
    if (extended && this.#u32(blockStatusExt.at.count) !== count)
      throw new NbdProtocolError(
        `${count} extents where ${this.#u32(blockStatusExt.at.count)} are announced in reply to ${request.title}`,
      )
    const sink = request.context(id)
    let end = request.offset
    for (let left = count; left > 0;) {
      const some = Math.min(left, this.#page.length / unit)
      yield this.intake.fill(this.#page.subarray(0, some * unit))
      left -= some
      for (let at = 0; at < some * unit; at += unit) {
        const size = extended ? rough64(this.#page, at) : this.#page.readUInt32BE(at)
        end += size
        if (size === 0) throw new NbdProtocolError(`an extent of no bytes in reply to ${request.title}`)
        if (size % minimum !== 0 && end < this.session.export.size)
          throw new NbdProtocolError(`an extent of ${size} bytes, which is no multiple of the minimum block size ${minimum}`)
        sink.add(size, extended ? status64(this.#page, at + 8) : this.#page.readUInt32BE(at + 4))
      }
    }
  }

  #find(bytes: Buffer, at: number) {
    const request = this.replied.find(bytes.readUInt32BE(at), bytes.readUInt32BE(at + 4))
    if (!request)
      throw new NbdProtocolError(`a reply to a request that does not wait (cookie 0x${bytes.toString('hex', at, at + 8)})`)
    return request
  }

  #expect(right: boolean, { request, type, length }: Chunk): asserts right {
    if (!right) throw new NbdProtocolError(`a chunk ${nameOf(ReplyType, type)} of ${length} bytes in reply to ${request.title}`)
  }

  #u32(at: number) {
    return this.intake.bytes.readUInt32BE(this.intake.at + at)
  }

  /** Rounded from 2^53 on: it is compared with what is smaller, and never equal to that. */
  #u64(at: number) {
    return rough64(this.intake.bytes, this.intake.at + at)
  }
}

const rough64 = (bytes: Buffer, at: number) => bytes.readUInt32BE(at) * 2 ** 32 + bytes.readUInt32BE(at + 4)

/** A number where that is exact. */
function status64(bytes: Buffer, at: number): number | bigint {
  const number = rough64(bytes, at)
  return Number.isSafeInteger(number) ? number : bytes.readBigUInt64BE(at)
}
