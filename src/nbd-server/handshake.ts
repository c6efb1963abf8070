// The negotiation, up to the choice of an export (the specification's "Newstyle negotiation").
//
// Options come one after the other, and each is answered before the next one is looked at; what is wrong with one is said, and the
// next one is read from where it begins. Only what leaves no way to know where that is ends the connection: a wrong magic number, or
// more data than any client has reason to send.

import {
  clientFlags,
  EXPORT_NAME_ZEROES,
  exportNameReply,
  greeting,
  HandshakeFlag,
  infoBlockSize,
  infoExport,
  infoHeader,
  InfoType,
  MAX_STRING,
  NBD_MAGIC,
  nameOf,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  Option,
  optionHeader,
  OptionReply,
  optionReplyHeader,
  TransmissionFlag,
} from 'nbd-client-ts/protocol'
import { TlsFailure, type TlsCredentials, type TlsIdentity } from '../base/tls-credentials.ts'
import type { Access } from './access.ts'
import type { Export } from './export.ts'
import type { Exports } from './exports.ts'
import type { Link, Peer } from './link.ts'
import { listed, readQueries, selected, type SelectedContext } from './meta-contexts.ts'
import { BLOCK_SIZES, transmissionFlags, type ReplyMode } from './offer.ts'
import { decodeName, OptionData, OptionRefused, quoted } from './option-data.ts'
import { seatsOf, type Seat } from './seats.ts'
import { ProtocolViolation, Vanished } from './vanished.ts'

/** What was agreed on. */
export interface Agreement {
  readonly export: Export
  readonly mode: ReplyMode
  /** In the order of their ids. */
  readonly contexts: readonly SelectedContext[]
  readonly flags: number
  /** Bytes, for as long as the connection lasts. */
  readonly size: number
  /** For whoever has it to give back, once nothing of the client's is left to be done. */
  readonly seat: Seat
}

export interface HandshakeTerms {
  readonly exports: Exports
  /** Clients may open several connections to the same export. */
  readonly multiConn: boolean
  /** Whether a peer may see an export, and write to it. Default: all may use all. */
  readonly authorize?: ((peer: Peer, wanted: Export) => Access | Promise<Access>) | undefined
  readonly closing: () => boolean
  readonly tls?: TlsTerms | undefined
}

export interface TlsTerms {
  /** `forced`: nothing goes without TLS; `selective`: some exports do (FORCEDTLS, SELECTIVETLS). */
  readonly mode: 'forced' | 'selective'
  /** Which those are. Default: all that are not `tlsOnly`. */
  readonly inTheClear?: ((one: Export) => boolean) | undefined
  readonly credentials: TlsCredentials
  /** Whether this client, having proved who it is, is served at all. Default: everybody is. */
  readonly admit?: ((identity: TlsIdentity) => boolean | Promise<boolean>) | undefined
}

/** More options than this nobody needs. */
const MAX_OPTIONS = 4096
/** The longest data of an option, in bytes. */
const MAX_DATA = 64 << 10
const maxData: Readonly<Record<number, number>> = {
  [Option.EXPORT_NAME]: MAX_STRING,
  [Option.INFO]: 4 + MAX_STRING + 2 + 2 * 0xffff,
  [Option.GO]: 4 + MAX_STRING + 2 + 2 * 0xffff,
  [Option.LIST_META_CONTEXT]: 1 << 20,
  [Option.SET_META_CONTEXT]: 1 << 20,
}

const NOTHING = Buffer.alloc(0)

/** Talks to the client until it has chosen an export; undefined when it has ended the negotiation. */
export const handshake = (link: Link, terms: HandshakeTerms) => new Handshake(link, terms).run()

class Handshake {
  #noZeroes = false
  #fixed = false
  #secure = false
  #mode: ReplyMode = 'simple'
  /** Of the latest SET_META_CONTEXT; they count for the same export under the same name only. */
  #contexts: { readonly name: string; readonly export: Export; readonly selected: readonly SelectedContext[] } | undefined

  constructor(
    private readonly link: Link,
    private readonly terms: HandshakeTerms,
  ) {}

  async run(): Promise<Agreement | undefined> {
    const offered = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
    this.link.outbox.large(greeting.bytes({ magic: NBD_MAGIC, optionMagic: OPTION_MAGIC, flags: offered }))
    this.link.outbox.flush()
    const { flags } = clientFlags.decode(await this.#read(clientFlags.size))
    if ((flags & ~offered) !== 0) throw new ProtocolViolation(`the client sets handshake flags that were not offered: ${flags}`)
    this.#fixed = (flags & HandshakeFlag.FIXED_NEWSTYLE) !== 0
    this.#noZeroes = (flags & HandshakeFlag.NO_ZEROES) !== 0
    for (let count = 0; count < MAX_OPTIONS; count++) {
      const { magic, option, length } = optionHeader.decode(await this.#read(optionHeader.size))
      if (magic !== OPTION_MAGIC) throw new ProtocolViolation('an option begins with a wrong magic number')
      if (length > (maxData[option] ?? MAX_DATA))
        throw new ProtocolViolation(`${length} bytes of data for option ${nameOf(Option, option)}`)
      if (!this.#fixed && option !== Option.EXPORT_NAME)
        throw new ProtocolViolation(`option ${nameOf(Option, option)} from a client that is not fixed newstyle`)
      const data = await this.#read(length)
      if (option === Option.EXPORT_NAME) return await this.#exportName(data)
      if (option === Option.ABORT) {
        await this.#answer(option, OptionReply.ACK)
        return undefined
      }
      try {
        const agreement = await this.#option(option, new OptionData(data))
        if (agreement) return agreement
      } catch (error) {
        if (!(error instanceof OptionRefused)) throw error
        await this.#answer(option, error.reply, Buffer.from(error.message))
      }
    }
    throw new ProtocolViolation(`more than ${MAX_OPTIONS} options`)
  }

  async #option(option: number, data: OptionData): Promise<Agreement | undefined> {
    if (this.terms.closing()) throw new OptionRefused(OptionReply.ERR_SHUTDOWN, 'the server is going down')
    if (option !== Option.STARTTLS && this.#mustBeSecured())
      throw new OptionRefused(OptionReply.ERR_TLS_REQD, `Option 0x${option.toString(16)} not permitted before TLS`)
    switch (option) {
      case Option.LIST:
        data.end()
        return await this.#list()
      case Option.INFO:
      case Option.GO:
        return await this.#go(option, data)
      case Option.STRUCTURED_REPLY:
        data.end()
        if (this.#mode === 'extended')
          throw new OptionRefused(OptionReply.ERR_EXT_HEADER_REQD, 'extended headers were agreed on already')
        this.#mode = 'structured'
        await this.#answer(option, OptionReply.ACK)
        return undefined
      case Option.EXTENDED_HEADERS:
        data.end()
        if (this.#mode === 'extended') throw new OptionRefused(OptionReply.ERR_INVALID, 'extended headers were agreed on already')
        this.#mode = 'extended'
        await this.#answer(option, OptionReply.ACK)
        return undefined
      case Option.LIST_META_CONTEXT:
      case Option.SET_META_CONTEXT:
        await this.#metaContexts(option, data)
        return undefined
      case Option.STARTTLS:
        data.end()
        await this.#startTls()
        return undefined
      default:
        throw new OptionRefused(OptionReply.ERR_UNSUP, `option ${nameOf(Option, option)} is not known here`)
    }
  }

  /** There is no way to say what is wrong. */
  async #exportName(data: Buffer): Promise<Agreement> {
    if (this.#mode === 'extended') throw new ProtocolViolation('EXPORT_NAME after EXTENDED_HEADERS')
    if (this.terms.closing()) throw new ProtocolViolation('EXPORT_NAME while the server is going down')
    if (this.#mustBeSecured()) throw new ProtocolViolation('EXPORT_NAME without the TLS that this server wants')
    const name = decodeName(data)
    const { found, access } = await this.#find(name)
    const agreement = this.#choose(name, found, access)
    const reply = Buffer.alloc(exportNameReply.size + (this.#noZeroes ? 0 : EXPORT_NAME_ZEROES))
    exportNameReply.encode(agreement, reply)
    this.link.outbox.large(reply)
    await this.#sent()
    return agreement
  }

  async #startTls() {
    const { tls } = this.terms
    if (!tls) throw new OptionRefused(OptionReply.ERR_POLICY, 'TLS not configured')
    if (this.#secure) throw new OptionRefused(OptionReply.ERR_INVALID, 'TLS already enabled')
    this.link.holdInput() // before it may answer: what comes then is TLS
    await this.#answer(Option.STARTTLS, OptionReply.ACK)
    await this.link.startTls(tls.credentials)
    const identity = this.link.peer.tls ?? {}
    if (tls.admit && !(await tls.admit(identity)))
      throw new TlsFailure(
        `${identity.certificate?.subject ?? 'a client without a certificate'} is not let in by the rules of tls-authz`,
      )
    this.#secure = true
    this.#mode = 'simple'
    this.#contexts = undefined
  }

  #mustBeSecured() {
    return this.terms.tls?.mode === 'forced' && !this.#secure
  }

  #isHidden(one: Export) {
    const { tls } = this.terms
    if (!tls || this.#secure) return false
    return tls.inTheClear ? !tls.inTheClear(one) : one.tlsOnly === true
  }

  async #list(): Promise<undefined> {
    for (const one of this.terms.exports) {
      if (this.#isHidden(one) || (await this.#access(one)) === false) continue
      const name = Buffer.from(one.name)
      const length = Buffer.alloc(4)
      length.writeUInt32BE(name.length)
      this.#reply(Option.LIST, OptionReply.SERVER, length, name, Buffer.from(one.description ?? ''))
      await this.#sent()
    }
    await this.#answer(Option.LIST, OptionReply.ACK)
  }

  async #go(option: number, data: OptionData): Promise<Agreement | undefined> {
    const name = data.name()
    const wanted = new Set<number>()
    for (let count = data.u16(); count > 0; count--) wanted.add(data.u16())
    data.end()
    const { found, access } = await this.#find(name)
    // What INFO tells it would be now; nothing is kept for whoever asks.
    const agreement = option === Option.GO ? this.#choose(name, found, access) : undefined
    const offer = agreement ?? this.#offer(name, found, access)
    const info = (...parts: Buffer[]) => this.#reply(option, OptionReply.INFO, ...parts)
    const text = (type: number, value: string) => info(infoHeader.bytes({ type }), Buffer.from(value))
    info(infoExport.bytes({ type: InfoType.EXPORT, ...offer }))
    info(infoBlockSize.bytes({ type: InfoType.BLOCK_SIZE, ...BLOCK_SIZES }))
    if (wanted.has(InfoType.NAME)) text(InfoType.NAME, found.name)
    if (wanted.has(InfoType.DESCRIPTION) && found.description !== undefined) text(InfoType.DESCRIPTION, found.description)
    await this.#answer(option, OptionReply.ACK)
    return agreement
  }

  async #metaContexts(option: number, data: OptionData) {
    const set = option === Option.SET_META_CONTEXT
    if (set) this.#contexts = undefined // also when this one fails
    const name = data.name()
    const queries = readQueries(data)
    if (set && this.#mode === 'simple')
      throw new OptionRefused(OptionReply.ERR_INVALID, 'metadata contexts need structured replies or extended headers')
    const { found } = await this.#find(name)
    const chosen = set ? selected(found.contexts, queries) : listed(found.contexts, queries).map(context => ({ id: 0, context }))
    if (set) this.#contexts = { name, export: found, selected: chosen }
    for (const { id, context } of chosen) {
      const number = Buffer.alloc(4)
      number.writeUInt32BE(id)
      this.#reply(option, OptionReply.META_CONTEXT, number, Buffer.from(context.name))
    }
    await this.#answer(option, OptionReply.ACK)
  }

  async #find(name: string): Promise<{ found: Export; access: true | 'read-only' }> {
    const found = this.terms.exports.find(name)
    // Over TLS there may be more, and whether there is must not be seen without it.
    if (this.terms.tls && !this.#secure && (!found || this.#isHidden(found)))
      throw new OptionRefused(OptionReply.ERR_TLS_REQD, `export ${quoted(name)} needs TLS, if it is here: STARTTLS`)
    if (!found) throw new OptionRefused(OptionReply.ERR_UNKNOWN, `export ${quoted(name)} not present`)
    const access = await this.#access(found)
    if (!access) throw new OptionRefused(OptionReply.ERR_POLICY, `export ${quoted(name)} is not for this client`)
    return { found, access }
  }

  async #access(one: Export): Promise<Access> {
    return (await this.terms.authorize?.(this.link.peer, one)) ?? true
  }

  /** From here on it is one of the export's clients. @throws OptionRefused where that has as many as it may */
  #choose(name: string, found: Export, access: true | 'read-only'): Agreement {
    const seats = seatsOf(found)
    if (seats.isFull) {
      const many = found.maxClients === 1 ? 'the one client' : `the ${found.maxClients} clients`
      throw new OptionRefused(
        OptionReply.ERR_POLICY,
        `export ${quoted(name)} has ${many} that it may have: try again when one has gone`,
      )
    }
    const offer = this.#offer(name, found, access)
    return { ...offer, seat: seats.take((offer.flags & TransmissionFlag.READ_ONLY) === 0) }
  }

  #offer(name: string, found: Export, access: true | 'read-only'): Omit<Agreement, 'seat'> {
    const chosen = this.#contexts
    const contexts = chosen?.name === name && chosen.export === found ? chosen.selected : []
    const writable = found.writable && access === true && seatsOf(found).mayWrite
    // One that is to be alone, or may be: what a second connection were offered might be something else.
    const multiConn = this.terms.multiConn && found.maxClients !== 1 && found.singleWriter !== true
    const flags = transmissionFlags({ writable }, { mode: this.#mode, multiConn, contexts: contexts.length > 0 })
    return { export: found, mode: this.#mode, contexts, flags, size: found.io.size }
  }

  /** Waits until the system has taken the answer: a client that asks and does not read is not asked for more. */
  async #answer(option: number, type: number, ...data: Buffer[]) {
    this.#reply(option, type, ...data)
    await this.#sent()
  }

  #reply(option: number, type: number, ...data: Buffer[]) {
    const length = data.reduce((sum, part) => sum + part.length, 0)
    this.link.outbox.large(optionReplyHeader.bytes({ magic: OPTION_REPLY_MAGIC, option, type, length }))
    for (const part of data) if (part.length > 0) this.link.outbox.large(part)
  }

  async #sent() {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.link.outbox.whenSent(resolve)
    this.link.outbox.flush()
    await promise
  }

  async #read(length: number): Promise<Buffer> {
    if (length === 0) return NOTHING
    const { inbound } = this.link
    const bytes = Buffer.allocUnsafe(length)
    while (!inbound.fill(bytes)) {
      if (inbound.ended) throw new Vanished('the client went away during the negotiation')
      const { promise, resolve } = Promise.withResolvers<void>()
      inbound.onProgress = resolve
      await promise
    }
    return bytes
  }
}
