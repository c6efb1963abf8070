// Option haggling, step by step. `connect.ts` knows in which order a client takes the steps; a program that wants to look around
// (list the exports of a server, ask about one) takes them itself.
//
// One option at a time: the next is sent after the final reply to the one before. STARTTLS drops everything agreed on before it.

import type tls from 'node:tls'
import { NbdConnectionError, type NbdError, NbdOptionError, NbdProtocolError, NbdUsageError, peerText } from './errors.ts'
import { HandshakeReader } from './handshake-reader.ts'
import {
  EXPORT_NAME_ZEROES,
  HandshakeFlag,
  InfoType,
  MAX_STRING,
  NBD_MAGIC,
  OLDSTYLE_MAGIC,
  OPTION_ERROR,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  Option,
  OptionReply,
  clientFlags,
  exportNameReply,
  greeting,
  nameOf,
  optionHeader,
  optionReplyHeader,
} from './protocol.ts'
import { ExportInfoReader } from './export-info.ts'
import type { ExportInfo, ReplyMode, Session } from './session.ts'
import type { Transport } from './transport.ts'

/** Data of a reply that is no error: far more than a name and a description need. */
const LONGEST_REPLY = 64 << 10
/** Data of a reply that is an error, of which MAX_STRING bytes are kept. */
const LONGEST_ERROR = 32 << 20
/** All replies to one option together, so that a peer cannot go on for ever. */
const MOST_BYTES = 16 << 20

export interface ListedExport {
  readonly name: string
  readonly description: string
}

export interface ListedContext {
  readonly id: number
  readonly name: string
}

export class Negotiation {
  #mode: ReplyMode = 'simple'
  #contexts: { exportName: string; ids: ReadonlyMap<number, string> } | undefined
  #over = false

  private constructor(
    private readonly transport: Transport,
    private readonly reader: HandshakeReader,
    private readonly handshakeFlags: number,
  ) {}

  /** Reads the greeting and answers it. */
  static async begin(transport: Transport): Promise<Negotiation> {
    const reader = new HandshakeReader(transport)
    const first = await reader.read(8)
    if (first.readBigUInt64BE() !== NBD_MAGIC)
      throw new NbdProtocolError(`this is no NBD server: it begins with '${peerText(first)}'`)
    const rest = await reader.read(greeting.size - 8)
    const magic = rest.readBigUInt64BE()
    if (magic === OLDSTYLE_MAGIC)
      throw new NbdProtocolError(
        'the server speaks the oldstyle protocol, which has no negotiation; serve the export by a newer program',
      )
    if (magic !== OPTION_MAGIC) throw new NbdProtocolError(`the greeting has the unknown magic number 0x${magic.toString(16)}`)
    const flags = rest.readUInt16BE(8) & (HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
    transport.write([clientFlags.bytes({ flags })], () => {})
    return new Negotiation(transport, reader, flags)
  }

  /** Without it there is only EXPORT_NAME. */
  get isFixedNewstyle(): boolean {
    return (this.handshakeFlags & HandshakeFlag.FIXED_NEWSTYLE) !== 0
  }

  get mode(): ReplyMode {
    return this.#mode
  }

  async startTls(options: tls.ConnectionOptions): Promise<tls.TLSSocket> {
    await this.#option(Option.STARTTLS)
    // Somebody in between could have put plain text there, to be read as if it had come through TLS (as in CVE-2021-3716).
    if (this.reader.hasSurplus) throw new NbdProtocolError('the server sent plain text behind its answer to STARTTLS')
    this.#mode = 'simple'
    this.#contexts = undefined
    return this.transport.startTls(options)
  }

  async structuredReplies(): Promise<void> {
    await this.#option(Option.STRUCTURED_REPLY)
    this.#mode = 'structured'
  }

  async extendedHeaders(): Promise<void> {
    await this.#option(Option.EXTENDED_HEADERS)
    this.#mode = 'extended'
  }

  /** All exports the server is willing to show. */
  async list(): Promise<ListedExport[]> {
    const exports: ListedExport[] = []
    await this.#option(Option.LIST, undefined, (type, data) => {
      if (type !== OptionReply.SERVER) return false
      const length = data.length >= 4 ? data.readUInt32BE() : Infinity
      if (length > data.length - 4) throw new NbdProtocolError(`a reply SERVER of ${data.length} bytes with a name of ${length}`)
      exports.push({ name: data.toString('utf8', 4, 4 + length), description: peerText(data.subarray(4 + length)) })
      return true
    })
    return exports
  }

  /** What the server says of an export, without entering it. */
  async info(exportName: string): Promise<ExportInfo> {
    return this.#info(Option.INFO, exportName)
  }

  /** The contexts that an export has for these queries ("base:", "qemu:dirty-bitmap:"); for none: all. */
  async listContexts(exportName: string, queries: readonly string[] = []): Promise<string[]> {
    return [...new Set((await this.#metaContext(Option.LIST_META_CONTEXT, exportName, queries)).map(({ name }) => name))]
  }

  /** Asks for contexts, in place of all asked for before. Says which of them there are. They are good for entering this export only. */
  async setContexts(exportName: string, names: readonly string[]): Promise<string[]> {
    this.#contexts = undefined
    const ids = new Map<number, string>()
    for (const { id, name } of await this.#metaContext(Option.SET_META_CONTEXT, exportName, names)) {
      if (!names.includes(name)) continue // nobody asked: its extents would mean nothing to anybody
      if (ids.has(id) || [...ids.values()].includes(name))
        throw new NbdProtocolError(`the context '${name}' (id ${id}) was given twice`)
      ids.set(id, name)
    }
    this.#contexts = { exportName, ids }
    return [...ids.values()]
  }

  /** Enters the export; then the negotiation is over. */
  async go(exportName: string): Promise<Session> {
    return this.#session(exportName, await this.#info(Option.GO, exportName))
  }

  /** Enters the export as the oldest clients do. A server that does not want to just closes the connection. */
  async exportName(exportName: string): Promise<Session> {
    if (this.#mode === 'extended') throw new NbdUsageError('EXPORT_NAME cannot be used with extended headers')
    this.#send(Option.EXPORT_NAME, nameBytes(exportName))
    const zeroes = this.handshakeFlags & HandshakeFlag.NO_ZEROES ? 0 : EXPORT_NAME_ZEROES
    const data = await this.reader.read(exportNameReply.size + zeroes).catch((error: unknown) => {
      if (!(error instanceof NbdConnectionError)) throw error
      throw new NbdConnectionError(`the server closed the connection when it was asked for the export '${exportName}'`, {
        cause: error,
      })
    })
    const info = new ExportInfoReader(exportName)
    info.exportName(data)
    return this.#session(exportName, info.result('EXPORT_NAME'))
  }

  /** Leaves without an export. */
  async abort(): Promise<void> {
    if (this.#over) return
    this.#over = true
    if (this.transport.error) return
    // The answer does not matter, and many a server does not give one.
    if (this.isFixedNewstyle) this.#send(Option.ABORT)
    this.reader.ignoreRest()
    await this.transport.end(ABORT_MS)
  }

  /** Leaves at once, for this reason. */
  destroy(error: NbdError): void {
    this.#over = true
    this.transport.destroy(error)
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.abort()
  }

  #session(exportName: string, info: ExportInfo): Session {
    if (this.reader.hasSurplus) throw new NbdProtocolError('the server sent something before it was asked for anything')
    this.#over = true
    this.transport.paused = false
    const contexts =
      this.#contexts?.exportName === exportName && this.#mode !== 'simple' ? this.#contexts.ids : new Map<number, string>()
    return { export: info, mode: this.#mode, contexts }
  }

  async #info(option: number, exportName: string) {
    const name = nameBytes(exportName)
    const wanted = [InfoType.NAME, InfoType.DESCRIPTION, InfoType.BLOCK_SIZE]
    const data = Buffer.alloc(4 + name.length + 2 + 2 * wanted.length)
    data.writeUInt32BE(name.length)
    name.copy(data, 4)
    data.writeUInt16BE(wanted.length, 4 + name.length)
    wanted.forEach((type, index) => data.writeUInt16BE(type, 4 + name.length + 2 + 2 * index))
    const info = new ExportInfoReader(exportName)
    await this.#option(option, data, (type, data) => {
      if (type !== OptionReply.INFO) return false
      info.info(data)
      return true
    })
    return info.result(nameOf(Option, option))
  }

  async #metaContext(option: number, exportName: string, queries: readonly string[]) {
    if (this.#mode === 'simple') throw new NbdUsageError('metadata contexts need structured replies')
    const strings = [exportName, ...queries].map(nameBytes)
    const counted = strings.map(string => [u32(string.length), string])
    counted[0]!.push(u32(queries.length))
    const contexts: ListedContext[] = []
    await this.#option(option, Buffer.concat(counted.flat()), (type, data) => {
      if (type !== OptionReply.META_CONTEXT) return false
      if (data.length < 5 || data.length > 4 + MAX_STRING)
        throw new NbdProtocolError(`a reply META_CONTEXT of ${data.length} bytes`)
      if (data.includes(0, 4)) throw new NbdProtocolError('a reply META_CONTEXT with a NUL in its name')
      contexts.push({ id: data.readUInt32BE(), name: data.toString('utf8', 4) })
      return true
    })
    return contexts
  }

  /** Sends an option and waits for its final reply. `on` takes replies before that, and says whether this option has such. */
  async #option(option: number, data?: Buffer, on: (type: number, data: Buffer) => boolean = () => false): Promise<void> {
    const name = nameOf(Option, option)
    this.#send(option, data)
    /** What cannot be used, though it keeps the protocol: said once the final reply is read, for another option may follow. */
    let unusable: NbdUsageError | undefined
    for (let bytes = 0; bytes < MOST_BYTES;) {
      const { magic, option: echoed, type, length } = optionReplyHeader.decode(await this.reader.read(optionReplyHeader.size))
      if (magic !== OPTION_REPLY_MAGIC) throw new NbdProtocolError(`a reply to ${name} begins with 0x${magic.toString(16)}`)
      if (echoed !== option) throw new NbdProtocolError(`a reply to ${nameOf(Option, echoed)} where one to ${name} was due`)
      if (type >= OPTION_ERROR) throw await this.#refusal(name, type, length)
      const reply = nameOf(OptionReply, type)
      if (type === OptionReply.ACK) {
        if (length !== 0) throw new NbdProtocolError(`a reply ACK to ${name} with ${length} bytes of data`)
        if (unusable) throw unusable
        return
      }
      if (length > LONGEST_REPLY) throw new NbdProtocolError(`a reply ${reply} to ${name} with ${length} bytes of data`)
      bytes += optionReplyHeader.size + length
      const body = await this.reader.read(length)
      try {
        if (!on(type, body)) throw new NbdProtocolError(`a reply ${reply} to ${name}`)
      } catch (error) {
        if (!(error instanceof NbdUsageError)) throw error
        unusable ??= error
      }
    }
    throw new NbdProtocolError(`more than ${MOST_BYTES} bytes of replies to ${name}`)
  }

  async #refusal(name: string, type: number, length: number) {
    if (length > LONGEST_ERROR) return new NbdProtocolError(`an error of ${length} bytes in reply to ${name}`)
    const text = await this.reader.read(Math.min(length, MAX_STRING))
    await this.reader.skip(length - text.length)
    return new NbdOptionError(name, nameOf(OptionReply, type), peerText(text))
  }

  #send(option: number, data: Buffer = Buffer.alloc(0)) {
    if (this.transport.error) throw this.transport.error
    this.transport.write([optionHeader.bytes({ magic: OPTION_MAGIC, option, length: data.length }), data], () => {})
  }
}

/** How long a server may take to close a connection that we leave. */
const ABORT_MS = 1000

function nameBytes(name: string) {
  if (!name.isWellFormed()) throw new NbdUsageError('a name must be Unicode, and this has half a character in it')
  const bytes = Buffer.from(name)
  if (bytes.length > MAX_STRING)
    throw new NbdUsageError(`a name of ${bytes.length} bytes is longer than the ${MAX_STRING} the protocol allows`)
  if (bytes.includes(0)) throw new NbdUsageError(`a name must not have a NUL in it: '${name.replaceAll('\0', '\\0')}'`)
  return bytes
}

function u32(value: number) {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}
