// The client: an export as an object. Every call checks what it asks for, cuts it to the server's block sizes, and settles when all
// of it is done or failed; a buffer that was handed in is nobody's but the caller's from then on.

import { EventEmitter } from 'node:events'
import type { CallOptions, ClientEvents, ExtentsOptions, ReadOptions, WriteOptions, ZeroOptions } from './call-options.ts'
import { type CopyOptions, copy } from './copy.ts'
import { NbdReplyError, NbdUsageError } from './errors.ts'
import { type NbdExtent, extents } from './extents.ts'
import { FlushLedger } from './flush-ledger.ts'
import { Limits, assumedBlockSizes } from './limits.ts'
import { type ConnectOptions, type NbdTarget, goalOf, poolOptionsOf } from './options.ts'
import { Pool, type PoolEvents } from './pool.ts'
import { Command, CommandFlag, type TransmissionFlag } from './protocol.ts'
import { type Range, alignDown, forEach, pieces } from './ranges.ts'
import { ReadRequest, type SparsePart, SparseReadRequest } from './read-request.ts'
import { PlainRequest, type Request, WriteRequest } from './request.ts'
import type { BlockSizes, ExportInfo, ReplyMode } from './session.ts'
import { StatusRequest } from './status-request.ts'

/** One request of ZERO, TRIM or CACHE: small enough that a slow server answers in time. */
const EFFECT_BYTES = 1 << 30
/** One request of BLOCK_STATUS without extended headers: below 2^32, and a multiple of every block size. */
const STATUS_BYTES = 2 ** 32 - 65_536
/** Pieces of one call that are under way at the same time. */
const PIECES_AT_ONCE = 16
const ZEROES = Buffer.alloc(1 << 20)

export class NbdClient extends EventEmitter<ClientEvents> implements AsyncDisposable {
  readonly #limits: Limits
  /** Writes, zeroes and trims that are not yet answered. */
  readonly #changes = new Set<Promise<void>>()

  private constructor(
    private readonly pool: Pool,
    private readonly ledger: FlushLedger,
    limits: Limits,
  ) {
    super()
    this.#limits = limits
  }

  /** Connects, negotiates and enters the export. Rejects with an NbdError, or with the signal's reason. */
  static async connect(target: NbdTarget, options: ConnectOptions = {}): Promise<NbdClient> {
    const assumed = assumedBlockSizes(options.assumeBlockSizes)
    const goal = await goalOf(target, options)
    const made: { client?: NbdClient } = {}
    const ledger = new FlushLedger()
    const events: PoolEvents = {
      written: () => ledger.writtenCount,
      durable: () => ledger.durableCount,
      unsure: error => ledger.lost(error),
      degraded: error => made.client?.emit('degraded', error),
      lost: error => made.client?.emit('lost', error),
      reconnected: () => made.client?.emit('reconnect'),
      dead: error => made.client?.emit('close', error),
    }
    const pool = await Pool.open(goal, poolOptionsOf(options), events, options.signal)
    made.client = new NbdClient(pool, ledger, new Limits(pool.session.export, assumed))
    return made.client
  }

  /** Bytes. */
  get size(): number {
    return this.#limits.size
  }

  get info(): ExportInfo {
    return this.pool.session.export
  }

  get replies(): ReplyMode {
    return this.pool.session.mode
  }

  /** The metadata contexts agreed on. */
  get contexts(): string[] {
    return [...this.pool.session.contexts.values()]
  }

  /** What requests are cut to. */
  get blockSizes(): BlockSizes {
    return this.#limits.blockSizes
  }

  get readOnly(): boolean {
    return this.offers('READ_ONLY')
  }

  /** At this moment. */
  get connectionCount(): number {
    return this.pool.connectionCount
  }

  /** Whether the server has set a transmission flag: `client.offers('SEND_TRIM')`. */
  offers(flag: keyof typeof TransmissionFlag): boolean {
    return this.#limits.has(flag)
  }

  /** Fills the buffer; or a new one of so many bytes. Where it fails, the buffer holds anything. */
  async read(offset: number, into: Uint8Array | number, options: ReadOptions = {}): Promise<Buffer> {
    const buffer = typeof into === 'number' ? Buffer.allocUnsafe(this.#checkedLength(offset, into)) : bufferOf(into)
    const range = { offset, length: buffer.length }
    this.#limits.checkRange('READ', range)
    const flags = this.#readFlags(options)
    const inner = this.#limits.inner(range)
    const send = (at: number, into: Buffer) => this.pool.submit(new ReadRequest(flags, at, into), options.signal)
    const { maximum } = this.#limits.blockSizes
    if (inner.length === range.length && inner.length > 0 && inner.length <= maximum) await send(offset, buffer)
    else await forEach(this.#readParts(range, inner), PIECES_AT_ONCE, part => this.#readPart(part, offset, buffer, send))
    return buffer
  }

  /** As the server sent it: data and holes, in order. The data is in `into`, or in a new buffer. */
  async readSparse(offset: number, into: Uint8Array | number, options: ReadOptions = {}): Promise<SparsePart[]> {
    const buffer = typeof into === 'number' ? Buffer.allocUnsafe(this.#checkedLength(offset, into)) : bufferOf(into)
    const range = { offset, length: buffer.length }
    this.#limits.checkRange('READ', range)
    if (this.#limits.inner(range).length !== range.length)
      throw new NbdUsageError(`a sparse read must begin and end at multiples of ${this.blockSizes.minimum} bytes`)
    const flags = this.#readFlags(options)
    const parts: SparsePart[] = []
    await forEachPiece(range, this.blockSizes.maximum, async piece => {
      const into = buffer.subarray(piece.offset - offset, piece.offset - offset + piece.length)
      parts.push(...(await this.pool.submit(new SparseReadRequest(flags, piece.offset, into), options.signal)))
    })
    return parts.sort((a, b) => a.offset - b.offset)
  }

  async write(offset: number, data: Uint8Array, { fua = false, signal }: WriteOptions = {}): Promise<void> {
    const buffer = bufferOf(data)
    const range = { offset, length: buffer.length }
    this.#limits.checkWrite('WRITE', range)
    const flags = this.#fua(fua)
    await forEachPiece(range, this.blockSizes.maximum, piece => {
      const part = piece === range ? buffer : buffer.subarray(piece.offset - offset, piece.offset - offset + piece.length)
      return this.#change(new WriteRequest(flags, piece.offset, part), signal)
    })
    if (fua && !flags) await this.flush({ signal })
  }

  /** Makes the range read as zeroes. A server without WRITE_ZEROES gets them written, unless it has to be fast. */
  async zero(
    offset: number,
    length: number,
    { fua = false, noHole = false, fast = false, signal }: ZeroOptions = {},
  ): Promise<void> {
    const range = { offset, length }
    this.#limits.checkWrite('WRITE_ZEROES', range)
    if (fast) this.#limits.require('WRITE_ZEROES with FAST_ZERO', 'SEND_FAST_ZERO')
    if (!this.offers('SEND_WRITE_ZEROES')) return this.#writeZeroes(range, { fua, signal })
    const flags = this.#fua(fua) | (noHole ? CommandFlag.NO_HOLE : 0) | (fast ? CommandFlag.FAST_ZERO : 0)
    try {
      await this.#effect(Command.WRITE_ZEROES, flags, range, signal)
    } catch (error) {
      // Not what the protocol allows without FAST_ZERO, and said by some all the same.
      if (fast || !(error instanceof NbdReplyError && error.code === 'ENOTSUP')) throw error
      return this.#writeZeroes(range, { fua, signal })
    }
    if (fua && !(flags & CommandFlag.FUA)) await this.flush({ signal })
  }

  /** The content is no longer needed: whole blocks in the range may read as anything from now on. */
  async trim(offset: number, length: number, { fua = false, signal }: WriteOptions = {}): Promise<void> {
    const range = { offset, length }
    this.#limits.checkRange('TRIM', range)
    if (this.readOnly) throw new NbdUsageError('TRIM: the export is read-only', 'EPERM')
    this.#limits.require('TRIM', 'SEND_TRIM')
    const flags = this.#fua(fua)
    await this.#effect(Command.TRIM, flags, this.#limits.inner(range), signal)
    if (fua && !flags) await this.flush({ signal })
  }

  /** Asks the server to read ahead. */
  async cache(offset: number, length: number, { signal }: CallOptions = {}): Promise<void> {
    const range = { offset, length }
    this.#limits.checkRange('CACHE', range)
    this.#limits.require('CACHE', 'SEND_CACHE')
    await this.#effect(Command.CACHE, 0, this.#limits.outer(range), signal)
  }

  /**
   * Everything that was written before this call is durable when it returns: what was answered, and what was under way. Where the
   * server does not offer it, there is nothing to flush.
   */
  async flush({ signal }: CallOptions = {}): Promise<void> {
    // Also those on other connections: FLUSH covers what was answered before it is sent. Their failures are their callers' matter.
    const answered = Promise.allSettled(this.#changes)
    await this.ledger.flush(answered, async () => {
      if (this.offers('SEND_FLUSH')) await this.pool.submit(new PlainRequest(Command.FLUSH, 0, 0, 0), signal)
    })
  }

  /** What the server's metadata contexts say of a range, side by side. */
  extents(options: ExtentsOptions & { readonly bigint: true }): AsyncGenerator<NbdExtent<bigint>>
  extents(options?: ExtentsOptions & { readonly bigint?: false }): AsyncGenerator<NbdExtent>
  async *extents(options: ExtentsOptions = {}): AsyncGenerator<NbdExtent<number | bigint>> {
    const { offset = 0, length = this.size - offset, coalesce = true, bigint = false, signal } = options
    const contexts = options.contexts ?? this.contexts
    this.#limits.checkRange('BLOCK_STATUS', { offset, length })
    const missing = contexts.find(name => !this.contexts.includes(name))
    if (missing !== undefined || contexts.length === 0)
      throw new NbdUsageError(
        `the metadata context '${missing ?? ''}' was not agreed on; there are: ${this.contexts.join(', ') || 'none'}`,
        'ENOTSUP',
      )
    const most = this.replies === 'extended' ? Number.MAX_SAFE_INTEGER : STATUS_BYTES
    const ask = { range: { offset, length }, contexts, coalesce, minimumBlock: this.blockSizes.minimum, most, size: this.size }
    for await (const extent of extents(ask, ({ offset, length }) =>
      this.pool.submit(new StatusRequest(offset, length, contexts), signal),
    )) {
      const status = Object.entries(extent.status).map(([name, value]) => [name, bigint ? BigInt(value) : exact(name, value)])
      yield { ...extent, status: Object.fromEntries(status) as Record<string, number | bigint> }
    }
  }

  /** Copies this export to another, holes as holes. */
  copyTo(target: NbdClient, options: CopyOptions = {}): Promise<void> {
    return copy(this, target, options)
  }

  /** No more calls; what is under way may finish, for so long. Then the server is told, and the connections are closed. */
  async close({ graceMs = 5000 }: { readonly graceMs?: number } = {}): Promise<void> {
    await this.pool.close(graceMs)
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /** Whole blocks first, then what stands over at both ends. */
  *#readParts(range: Range, inner: Range): Generator<Range> {
    if (inner.length === 0) {
      yield* pieces(range, this.blockSizes.maximum)
      return
    }
    yield* pieces(inner, this.blockSizes.maximum)
    if (inner.offset > range.offset) yield { offset: range.offset, length: inner.offset - range.offset }
    const end = inner.offset + inner.length
    if (end < range.offset + range.length) yield { offset: end, length: range.offset + range.length - end }
  }

  /** What is no whole block is read as one, elsewhere, and copied. */
  async #readPart(part: Range, start: number, into: Buffer, send: (at: number, into: Buffer) => Promise<void>) {
    const target = into.subarray(part.offset - start, part.offset - start + part.length)
    const outer = this.#limits.outer(part)
    if (outer.length === part.length) return send(part.offset, target)
    const block = Buffer.allocUnsafe(outer.length)
    await send(outer.offset, block)
    block.copy(target, 0, part.offset - outer.offset)
  }

  async #writeZeroes(range: Range, { fua = false, signal }: WriteOptions) {
    for (const piece of pieces(range, alignDown(Math.min(ZEROES.length, this.blockSizes.maximum), this.blockSizes.minimum)))
      await this.write(piece.offset, ZEROES.subarray(0, piece.length), { signal })
    if (fua) await this.flush({ signal })
  }

  async #effect(command: number, flags: number, range: Range, signal: AbortSignal | undefined) {
    await forEachPiece(range, EFFECT_BYTES, ({ offset, length }) => {
      const request = new PlainRequest(command, flags, offset, length)
      return command === Command.CACHE ? this.pool.submit(request, signal) : this.#change(request, signal)
    })
  }

  /** A request that a later flush has to cover. */
  #change(request: Request<void>, signal: AbortSignal | undefined): Promise<void> {
    const promise = this.pool.submit(request, signal)
    this.#changes.add(promise)
    const forget = () => this.#changes.delete(promise)
    const answered = () => {
      forget()
      if (!(request.flags & CommandFlag.FUA)) this.ledger.written()
    }
    promise.then(answered, forget)
    return promise
  }

  #fua(wanted: boolean) {
    return wanted && this.offers('SEND_FUA') ? CommandFlag.FUA : 0
  }

  #readFlags({ df }: ReadOptions) {
    if (!df) return 0
    this.#limits.require('READ with DF', 'SEND_DF')
    return CommandFlag.DF
  }

  /** Before anything is allocated. */
  #checkedLength(offset: number, length: number) {
    this.#limits.checkRange('READ', { offset, length })
    return length
  }
}

/** Most calls are one piece. */
async function forEachPiece(range: Range, most: number, work: (piece: Range) => Promise<unknown>) {
  if (range.length > most) await forEach(pieces(range, most), PIECES_AT_ONCE, work)
  else if (range.length > 0) await work(range)
}

const bufferOf = (bytes: Uint8Array) =>
  Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer as ArrayBuffer, bytes.byteOffset, bytes.byteLength)

function exact(name: string, value: number | bigint) {
  if (typeof value === 'bigint')
    throw new NbdUsageError(`a status of '${name}' has more than 53 bits (0x${value.toString(16)}); ask for bigint`, 'EOVERFLOW')
  return value
}
