// NBD messages as a client writes and reads them, byte by byte: for tests that say exactly what goes over the wire.

import net from 'node:net'
import {
  blockStatus,
  blockStatusExt,
  blockStatusExtExtent,
  blockStatusExtent,
  clientFlags,
  errorChunk,
  errorOffset,
  EXTENDED_REPLY_MAGIC,
  EXTENDED_REQUEST_MAGIC,
  extendedReply,
  extendedRequest,
  greeting,
  nameOf,
  nbdErrors,
  offsetHole,
  OPTION_ERROR,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  Option,
  optionHeader,
  OptionReply,
  optionReplyHeader,
  REPLY_ERROR,
  ReplyFlag,
  ReplyType,
  request as compactRequest,
  REQUEST_MAGIC,
  SIMPLE_REPLY_MAGIC,
  simpleReply,
  STRUCTURED_REPLY_MAGIC,
  structuredReply,
} from 'nbd-client-ts/protocol'

export const u16 = (value: number) => {
  const bytes = Buffer.alloc(2)
  bytes.writeUInt16BE(value)
  return bytes
}
export const u32 = (value: number) => {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}
export const u64 = (value: bigint | number) => {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(BigInt(value))
  return bytes
}

/** A length in 32 bits, and so many bytes. */
export const counted = (text: string | Buffer) => Buffer.concat([u32(Buffer.byteLength(text)), Buffer.from(text as string)])

export const flags = (value: number) => clientFlags.bytes({ flags: value })

export const option = (number: number, ...data: Buffer[]) => {
  const all = Buffer.concat(data)
  return Buffer.concat([optionHeader.bytes({ magic: OPTION_MAGIC, option: number, length: all.length }), all])
}

/** The data of INFO or GO. */
export const goData = (name: string, ...infos: number[]) => Buffer.concat([counted(name), u16(infos.length), ...infos.map(u16)])
export const go = (name: string, ...infos: number[]) => option(Option.GO, goData(name, ...infos))
/** The data of LIST_META_CONTEXT or SET_META_CONTEXT. */
export const queries = (name: string, ...all: string[]) => Buffer.concat([counted(name), u32(all.length), ...all.map(counted)])

interface RequestFields {
  type: number
  flags?: number
  cookie?: bigint
  offset?: number | bigint
  length?: number
  payload?: Buffer
}

export const request = ({ type, flags = 0, cookie = 0n, offset = 0, length, payload }: RequestFields) => {
  const fields = { magic: REQUEST_MAGIC, type, flags, cookie, offset: BigInt(offset), length: length ?? payload?.length ?? 0 }
  return Buffer.concat([compactRequest.bytes(fields), payload ?? Buffer.alloc(0)])
}

export const extended = ({
  type,
  flags = 0,
  cookie = 0n,
  offset = 0,
  length,
  payload,
}: Omit<RequestFields, 'length'> & { length?: number | bigint }) => {
  const fields = {
    magic: EXTENDED_REQUEST_MAGIC,
    type,
    flags,
    cookie,
    offset: BigInt(offset),
    length: BigInt(length ?? payload?.length ?? 0),
  }
  return Buffer.concat([extendedRequest.bytes(fields), payload ?? Buffer.alloc(0)])
}

export interface OptionAnswer {
  readonly option: string
  readonly type: string
  /** Of an error: its text. */
  readonly text?: string
  readonly data?: string
}

export interface Answer {
  readonly kind: 'simple' | 'structured' | 'extended'
  readonly cookie: bigint
  readonly error?: string
  readonly type?: string
  readonly done?: boolean
  readonly text?: string
  readonly offset?: number
  /** Of data, or of a hole. */
  readonly length?: number
  readonly data?: Buffer
  readonly context?: number
  readonly extents?: (readonly [length: number, flags: number])[]
}

const utf8 = new TextDecoder('utf-8', { fatal: true })
const errorName = (error: number) => nameOf(nbdErrors, error)

/** Texts travel as UTF-8 without NUL, 4096 bytes at most. */
function textOf(bytes: Buffer) {
  if (bytes.length > 4096 || bytes.includes(0)) throw new Error(`a text of ${bytes.length} bytes, or with a NUL in it`)
  return utf8.decode(bytes)
}

/** Reads what a server has said, from its greeting on. */
export class Reader {
  #at = 0

  constructor(private readonly bytes: Buffer) {}

  get left() {
    return this.bytes.length - this.#at
  }

  take(count: number) {
    if (count > this.left) throw new Error(`${this.left} bytes are left, ${count} were expected`)
    return this.bytes.subarray(this.#at, (this.#at += count))
  }

  greeting() {
    return greeting.decode(this.take(greeting.size))
  }

  optionAnswer(): OptionAnswer {
    const { magic, option, type, length } = optionReplyHeader.decode(this.take(optionReplyHeader.size))
    if (magic !== OPTION_REPLY_MAGIC) throw new Error('wrong magic in an option reply')
    const data = this.take(length)
    const names = { option: nameOf(Option, option), type: nameOf(OptionReply, type) }
    if ((type & OPTION_ERROR) !== 0) return { ...names, text: textOf(data) }
    return { ...names, ...(length > 0 && { data: data.toString('latin1') }) }
  }

  /** All up to the end, or to GO's ACK. */
  optionAnswers(): OptionAnswer[] {
    const all: OptionAnswer[] = []
    while (this.left > 0) {
      const next = this.optionAnswer()
      all.push(next)
      if (next.option === 'GO' && next.type === 'ACK') break
    }
    return all
  }

  /** `reading`: how much data follows a simple reply without an error, by its cookie. */
  answer(reading: (cookie: bigint) => number = () => 0): Answer {
    const magic = this.bytes.readUInt32BE(this.#at)
    if (magic === SIMPLE_REPLY_MAGIC) {
      const { error, cookie } = simpleReply.decode(this.take(simpleReply.size))
      const data = error === 0 ? this.take(reading(cookie)) : Buffer.alloc(0)
      return { kind: 'simple', cookie, ...(error !== 0 && { error: errorName(error) }), ...(data.length > 0 && { data }) }
    }
    if (magic === STRUCTURED_REPLY_MAGIC) {
      const { flags, type, cookie, length } = structuredReply.decode(this.take(structuredReply.size))
      return { kind: 'structured', cookie, ...chunk(type, flags, this.take(length)) }
    }
    if (magic !== EXTENDED_REPLY_MAGIC) throw new Error(`wrong magic 0x${magic.toString(16)} in a reply`)
    const { flags, type, cookie, length } = extendedReply.decode(this.take(extendedReply.size))
    return { kind: 'extended', cookie, ...chunk(type, flags, this.take(Number(length))) }
  }

  answers(reading?: (cookie: bigint) => number): Answer[] {
    const all: Answer[] = []
    while (this.left > 0) all.push(this.answer(reading))
    return all
  }
}

function chunk(type: number, flags: number, payload: Buffer): Omit<Answer, 'kind' | 'cookie'> {
  if ((flags & ~ReplyFlag.DONE) !== 0) throw new Error(`reply flags ${flags}`)
  const common = { type: nameOf(ReplyType, type), done: (flags & ReplyFlag.DONE) !== 0 }
  if ((type & REPLY_ERROR) !== 0) {
    const { error, messageLength } = errorChunk.decode(payload)
    const end = errorChunk.size + messageLength
    if (payload.length !== end + (type === ReplyType.ERROR_OFFSET ? errorOffset.size : 0))
      throw new Error('an error chunk of a wrong length')
    const where = type === ReplyType.ERROR_OFFSET ? { offset: Number(payload.readBigUInt64BE(end)) } : {}
    return { ...common, error: errorName(error), text: textOf(payload.subarray(errorChunk.size, end)), ...where }
  }
  switch (type) {
    case ReplyType.NONE:
      if (payload.length > 0) throw new Error('NONE with a payload')
      return common
    case ReplyType.OFFSET_DATA:
      return { ...common, offset: Number(payload.readBigUInt64BE()), length: payload.length - 8, data: payload.subarray(8) }
    case ReplyType.OFFSET_HOLE:
      return { ...common, ...offsetHole.decode(payload) }
    case ReplyType.BLOCK_STATUS: {
      const extents: [number, number][] = []
      for (let at = blockStatus.size; at < payload.length; at += blockStatusExtent.size) {
        const { length, status } = blockStatusExtent.decode(payload, at)
        extents.push([length, status])
      }
      return { ...common, context: blockStatus.decode(payload).contextId, extents }
    }
    case ReplyType.BLOCK_STATUS_EXT: {
      const { contextId, count } = blockStatusExt.decode(payload)
      const extents: [number, number][] = []
      for (let at = blockStatusExt.size; at < payload.length; at += blockStatusExtExtent.size) {
        const { length, status } = blockStatusExtExtent.decode(payload, at)
        extents.push([Number(length), Number(status)])
      }
      if (extents.length !== count) throw new Error(`${count} extents are announced, and ${extents.length} come`)
      return { ...common, context: contextId, extents }
    }
    default:
      throw new Error(`a chunk of type ${type}`)
  }
}

/** A connection that sends and gathers bytes, and knows nothing else. */
export class RawPeer implements AsyncDisposable {
  readonly #chunks: Buffer[] = []
  #gathered = 0
  #progress = Promise.withResolvers<void>()
  #ended = false

  private constructor(readonly socket: net.Socket) {
    socket.on('data', (chunk: Buffer) => {
      this.#chunks.push(chunk)
      this.#gathered += chunk.length
      this.#wake()
    })
    socket.on('end', () => this.#end())
    socket.on('close', () => this.#end())
    socket.on('error', () => this.#end())
  }

  static async connect(where: string | net.NetConnectOpts) {
    const socket = typeof where === 'string' ? net.connect(where) : net.connect(where)
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    socket.once('connect', resolve)
    socket.once('error', reject)
    await promise
    return new RawPeer(socket)
  }

  /** All that has come so far. */
  get received() {
    return Buffer.concat(this.#chunks)
  }

  get ended() {
    return this.#ended
  }

  /** Resolves when the system has taken it, or when the other end is gone. */
  send(...parts: Buffer[]) {
    return new Promise<void>(resolve => this.socket.write(Buffer.concat(parts), () => resolve()))
  }

  /** Waits until that much has come in all; less when the other end is through. */
  async upTo(count: number) {
    while (this.#gathered < count && !this.#ended) await this.#progress.promise
    return this.received
  }

  /** Says that no more is sent, and waits for the other end to be through. */
  async rest() {
    this.socket.end()
    return await this.upTo(Infinity)
  }

  async [Symbol.asyncDispose]() {
    this.socket.destroy()
    if (!this.socket.closed) await new Promise(resolve => this.socket.once('close', resolve))
  }

  #end() {
    this.#ended = true
    this.#wake()
  }

  #wake() {
    this.#progress.resolve()
    this.#progress = Promise.withResolvers()
  }
}

/** Sends it all at once, and reads until the server is through. */
export async function converse(socket: string, ...parts: Buffer[]) {
  await using peer = await RawPeer.connect(socket)
  await peer.send(...parts)
  return new Reader(await peer.rest())
}
