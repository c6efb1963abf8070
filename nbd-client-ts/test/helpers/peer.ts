// A server that a test plays itself, byte for byte.

import net from 'node:net'
import tls from 'node:tls'
import { join } from 'node:path'
import {
  HandshakeFlag,
  InfoType,
  NBD_MAGIC,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  Option,
  OptionReply,
  REQUEST_MAGIC,
  ReplyFlag,
  ReplyType,
  STRUCTURED_REPLY_MAGIC,
  SIMPLE_REPLY_MAGIC,
  EXTENDED_REPLY_MAGIC,
  TransmissionFlag,
  Command,
  clientFlags,
  extendedReply,
  extendedRequest,
  greeting,
  optionHeader,
  optionReplyHeader,
  request as compactRequest,
  simpleReply,
  structuredReply,
} from '../../src/protocol.ts'
import { folder } from './servers.ts'

/** The client's end went away. */
export class Gone extends Error {}

/** One connection, from the server's side. */
export class Peer {
  #chunks: Buffer[] = []
  #length = 0
  #ended = false
  #wake: (() => void) | undefined

  constructor(readonly socket: net.Socket) {
    socket.on('data', (chunk: Buffer) => {
      this.#chunks.push(chunk)
      this.#length += chunk.length
      this.#wake?.()
    })
    socket.on('error', () => socket.destroy())
    socket.on('close', () => {
      this.#ended = true
      this.#wake?.()
    })
  }

  async read(length: number): Promise<Buffer> {
    while (this.#length < length) {
      if (this.#ended) throw new Gone(`wanted ${length} bytes, and there were ${this.#length}`)
      await new Promise<void>(resolve => (this.#wake = resolve))
    }
    const all = Buffer.concat(this.#chunks)
    this.#chunks = [all.subarray(length)]
    this.#length -= length
    return all.subarray(0, length)
  }

  /** Waits until the client has gone; how many bytes it had sent that nobody has read. */
  async ended(): Promise<number> {
    while (!this.#ended) await new Promise<void>(resolve => (this.#wake = resolve))
    return this.#length
  }

  send(...parts: Buffer[]): void {
    if (!this.socket.destroyed) this.socket.write(Buffer.concat(parts))
  }

  /** Goes on in TLS, as a server. */
  secure(options: tls.TLSSocketOptions): Peer {
    this.socket.removeAllListeners('data')
    return new Peer(new tls.TLSSocket(this.socket, { isServer: true, ...options }))
  }

  async option(): Promise<{ option: number; data: Buffer }> {
    const { magic, option, length } = optionHeader.decode(await this.read(optionHeader.size))
    if (magic !== OPTION_MAGIC) throw new Error(`an option begins with ${magic}`)
    return { option, data: await this.read(length) }
  }

  async request(extended = false): Promise<AnyRequest> {
    if (!extended) {
      const header = compactRequest.decode(await this.read(compactRequest.size))
      if (header.magic !== REQUEST_MAGIC) throw new Error(`a request begins with ${header.magic}`)
      const payload = header.type === Command.WRITE ? await this.read(header.length) : Buffer.alloc(0)
      return { ...header, offset: Number(header.offset), payload }
    }
    const header = extendedRequest.decode(await this.read(extendedRequest.size))
    const length = Number(header.length)
    const payload = header.flags & 32 ? await this.read(length) : Buffer.alloc(0)
    return { ...header, offset: Number(header.offset), length, payload }
  }
}

export interface AnyRequest {
  readonly type: number
  readonly flags: number
  readonly cookie: bigint
  readonly offset: number
  readonly length: number
  readonly payload: Buffer
}

/** Plays on every connection until the stack is disposed; `number` counts them from 0. */
export async function play(
  stack: AsyncDisposableStack,
  script: (peer: Peer, number: number) => Promise<void>,
  over: 'unix' | 'tcp' = 'unix',
): Promise<string> {
  const path = join(folder(stack), 'peer.sock')
  const sockets = new Set<net.Socket>()
  const failures: unknown[] = []
  let count = 0
  const server = net.createServer(connection => {
    sockets.add(connection)
    connection.on('close', () => sockets.delete(connection))
    script(new Peer(connection), count++).catch((error: unknown) => {
      if (!(error instanceof Gone)) failures.push(error)
      connection.destroy()
    })
  })
  await new Promise<void>(resolve => server.listen(over === 'unix' ? { path } : { port: 0, host: '127.0.0.1' }, resolve))
  stack.defer(async () => {
    for (const socket of sockets) socket.destroy()
    await new Promise(resolve => server.close(resolve))
    if (failures.length > 0) throw failures[0]
  })
  return over === 'unix' ? `nbd+unix:///?socket=${path}` : `nbd://127.0.0.1:${(server.address() as net.AddressInfo).port}`
}

// --- Messages ---------------------------------------------------------------------------------------------------------------------

export const u16 = (value: number) => Buffer.from([value >> 8, value & 0xff])
export function u32(value: number) {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}
export function u64(value: bigint | number) {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(BigInt(value))
  return bytes
}
export const bytes = (...parts: (Buffer | string)[]) => Buffer.concat(parts.map(part => Buffer.from(part)))

export const hello = (flags: number = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES) =>
  greeting.bytes({ magic: NBD_MAGIC, optionMagic: OPTION_MAGIC, flags })

export const optionReply = (option: number, type: number, data: Buffer = Buffer.alloc(0)) =>
  bytes(optionReplyHeader.bytes({ magic: OPTION_REPLY_MAGIC, option, type, length: data.length }), data)

export const simple = (cookie: bigint, error = 0, data: Buffer = Buffer.alloc(0)) =>
  bytes(simpleReply.bytes({ magic: SIMPLE_REPLY_MAGIC, error, cookie }), data)

export const chunk = (cookie: bigint, type: number, payload: Buffer = Buffer.alloc(0), flags: number = ReplyFlag.DONE) =>
  bytes(structuredReply.bytes({ magic: STRUCTURED_REPLY_MAGIC, flags, type, cookie, length: payload.length }), payload)

export const extendedChunk = (
  { cookie, offset }: Pick<AnyRequest, 'cookie' | 'offset'>,
  type: number,
  payload: Buffer = Buffer.alloc(0),
  flags: number = ReplyFlag.DONE,
) =>
  bytes(
    extendedReply.bytes({
      magic: EXTENDED_REPLY_MAGIC,
      flags,
      type,
      cookie,
      offset: BigInt(offset),
      length: BigInt(payload.length),
    }),
    payload,
  )

/** The structured chunks of a reply as a server with extended headers sends them; what is none stays as it is. */
export function asExtended(reply: Buffer, { offset }: Pick<AnyRequest, 'offset'>): Buffer {
  const chunks: Buffer[] = []
  let at = 0
  while (reply.length - at >= structuredReply.size && reply.readUInt32BE(at) === STRUCTURED_REPLY_MAGIC) {
    const { flags, type, cookie, length } = structuredReply.decode(reply.subarray(at, at + structuredReply.size))
    const payload = reply.subarray(at + structuredReply.size, at + structuredReply.size + length)
    at += structuredReply.size + payload.length
    const isStatus = type === ReplyType.BLOCK_STATUS
    const same = isStatus && payload.length > 0 ? wide(payload) : payload
    const chunk = extendedChunk({ cookie, offset }, isStatus ? ReplyType.BLOCK_STATUS_EXT : type, same, flags)
    chunks.push(payload.length === length ? chunk : chunk.fill(u64(length), 24, 32))
  }
  return bytes(...chunks, reply.subarray(at))
}

/** Extents of 64 bits of those of 32; half of one stays half of one. */
function wide(payload: Buffer) {
  const numbers = Array.from({ length: payload.length / 4 - 1 }, (_, index) => payload.readUInt32BE(4 + 4 * index))
  const half = numbers.length % 2 === 1 ? [u32(numbers.pop()!)] : []
  return bytes(payload.subarray(0, 4), u32(numbers.length / 2), ...numbers.map(u64), ...half)
}

export const data = (offset: number, content: Buffer | string) => bytes(u64(offset), content)
export const hole = (offset: number, length: number) => bytes(u64(offset), u32(length))
export const errorOf = (error: number, message: Buffer | string = '') =>
  bytes(u32(error), u16(Buffer.byteLength(message)), message)
export const status = (id: number, ...extents: [length: number, status: number][]) =>
  bytes(u32(id), ...extents.map(([length, status]) => bytes(u32(length), u32(status))))
export const statusExt = (id: number, ...extents: [length: bigint | number, status: bigint | number][]) =>
  bytes(u32(id), u32(extents.length), ...extents.map(([length, status]) => bytes(u64(length), u64(status))))

// --- A server that behaves ----------------------------------------------------------------------------------------------------------

export const SIZE = 1 << 20
export const ALL_FLAGS =
  TransmissionFlag.HAS_FLAGS |
  TransmissionFlag.SEND_FLUSH |
  TransmissionFlag.SEND_FUA |
  TransmissionFlag.SEND_TRIM |
  TransmissionFlag.SEND_WRITE_ZEROES |
  TransmissionFlag.SEND_DF |
  TransmissionFlag.SEND_CACHE |
  TransmissionFlag.SEND_FAST_ZERO

/** What an option is answered with: bytes to send, or `undefined` to send nothing. */
export type Answers = Partial<Record<keyof typeof Option, (data: Buffer, peer: Peer) => Buffer | undefined>>

export const info = (flags: number = ALL_FLAGS, size: bigint | number = SIZE) =>
  bytes(u16(InfoType.EXPORT), u64(size), u16(flags))
export const blockSizes = (minimum: number, preferred: number, maximum: number) =>
  bytes(u16(InfoType.BLOCK_SIZE), u32(minimum), u32(preferred), u32(maximum))
export const goAnswer = (...infos: Buffer[]) =>
  bytes(...infos.map(info => optionReply(Option.GO, OptionReply.INFO, info)), optionReply(Option.GO, OptionReply.ACK))
export const refuse =
  (option: keyof typeof Option, type: keyof typeof OptionReply, text = '') =>
  () =>
    optionReply(Option[option], OptionReply[type], Buffer.from(text))

/** Contexts in the order they are asked for, with ids from 7 on. */
export function grantAll(data: Buffer) {
  const nameLength = data.readUInt32BE()
  let at = 4 + nameLength + 4
  const replies: Buffer[] = []
  for (let id = 7; at < data.length; id++) {
    const length = data.readUInt32BE(at)
    const name = data.subarray(at + 4, at + 4 + length)
    replies.push(optionReply(Option.SET_META_CONTEXT, OptionReply.META_CONTEXT, bytes(u32(id), name)))
    at += 4 + length
  }
  return bytes(...replies, optionReply(Option.SET_META_CONTEXT, OptionReply.ACK))
}

export const structuredAnswers: Answers = {
  EXTENDED_HEADERS: refuse('EXTENDED_HEADERS', 'ERR_UNSUP'),
  STRUCTURED_REPLY: () => optionReply(Option.STRUCTURED_REPLY, OptionReply.ACK),
  SET_META_CONTEXT: grantAll,
  GO: () => goAnswer(info(), blockSizes(1, 4096, 32 << 20)),
}
export const simpleAnswers: Answers = { ...structuredAnswers, STRUCTURED_REPLY: refuse('STRUCTURED_REPLY', 'ERR_UNSUP') }
export const extendedAnswers: Answers = {
  ...structuredAnswers,
  EXTENDED_HEADERS: () => optionReply(Option.EXTENDED_HEADERS, OptionReply.ACK),
}

/** Greets and answers options until GO or EXPORT_NAME. False: the client left with ABORT. */
export async function handshake(peer: Peer, answers: Answers, greetingBytes: Buffer = hello()): Promise<boolean> {
  peer.send(greetingBytes)
  clientFlags.decode(await peer.read(clientFlags.size))
  for (;;) {
    const { option, data } = await peer.option()
    const name = Object.keys(Option).find(name => Option[name as keyof typeof Option] === option) as keyof typeof Option
    if (name === 'ABORT') {
      peer.send(optionReply(option, OptionReply.ACK))
      return false
    }
    const answer = answers[name] ?? refuse(name, 'ERR_UNSUP')
    const reply = answer(data, peer)
    if (reply) peer.send(reply)
    if (name === 'EXPORT_NAME' || (name === 'GO' && answers.GO)) return true
  }
}

/** Answers a structured or simple request as a disk full of 0x5a does. */
export function serve(request: AnyRequest, mode: 'simple' | 'structured' | 'extended'): Buffer | undefined {
  const { type, cookie, offset, length } = request
  if (type === Command.DISC) return undefined
  if (type === Command.READ) {
    const content = Buffer.alloc(length, 0x5a)
    if (mode === 'simple') return simple(cookie, 0, content)
    return mode === 'structured'
      ? chunk(cookie, ReplyType.OFFSET_DATA, data(offset, content))
      : extendedChunk(request, ReplyType.OFFSET_DATA, data(offset, content))
  }
  if (type === Command.BLOCK_STATUS) {
    return mode === 'extended'
      ? extendedChunk(request, ReplyType.BLOCK_STATUS_EXT, statusExt(7, [length, 0]))
      : chunk(cookie, ReplyType.BLOCK_STATUS, status(7, [length, 0]))
  }
  return mode === 'extended' ? extendedChunk(request, ReplyType.NONE) : simple(cookie)
}
