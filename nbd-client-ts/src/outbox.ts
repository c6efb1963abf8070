// What a connection still has to send. Requests wait here until the socket has taken what came before; until then one can be taken
// back as if it had never been.
//
// Requests that are made in one turn of the event loop leave in one write. A payload is handed over as it is, never copied.

import { REQUEST_MAGIC, EXTENDED_REQUEST_MAGIC, extendedRequest, request as compactRequest } from './protocol.ts'
import type { Request } from './request.ts'
import type { Transport } from './transport.ts'

/** One write: enough to keep a socket busy, and small enough to see that it moves. */
const WRITE_BYTES = 1 << 20

export class Outbox {
  #waiting: Request[] = []
  /** What is left of a payload that is larger than a write, and whose it is. */
  #rest: { request: Request; data: Buffer } | undefined
  #scheduled = false
  #writing = false
  /** Their last bytes are in the write that is under way. */
  #ending: Request[] = []
  #idle: PromiseWithResolvers<void> | undefined

  constructor(
    private readonly transport: Transport,
    private readonly extended: boolean,
    /** High half of every cookie. */
    private readonly tag: number,
    /** The socket took some more. */
    private readonly moved: () => void,
  ) {}

  /** Waits until the socket has taken all that is here now and comes later; or closes. */
  async flushed(): Promise<void> {
    if (this.isEmpty) return
    this.#idle ??= Promise.withResolvers()
    await this.#idle.promise
  }

  get isEmpty(): boolean {
    return this.#waiting.length === 0 && !this.#writing
  }

  push(request: Request): void {
    this.#waiting.push(request)
    if (this.#scheduled || this.#writing) return
    this.#scheduled = true
    process.nextTick(() => {
      this.#scheduled = false
      this.#pump()
    })
  }

  /** Takes back what nobody has seen yet. */
  withdraw(request: Request): boolean {
    const index = this.#waiting.indexOf(request)
    if (index >= 0) this.#waiting.splice(index, 1)
    return index >= 0
  }

  #pump() {
    if (this.#writing || this.transport.error) return
    const buffers: Buffer[] = []
    let bytes = this.#continue(buffers)
    let taken = 0
    const { size } = this.extended ? extendedRequest : compactRequest
    const headers = Buffer.allocUnsafe(size * this.#waiting.length)
    /** Headers from here to `taken * size` are not yet among the buffers. */
    let from = 0
    while (taken < this.#waiting.length && bytes < WRITE_BYTES) {
      const request = this.#waiting[taken]!
      this.#encode(request, headers, taken * size)
      taken++
      bytes += size
      if (!request.payload) this.#ending.push(request)
      else {
        buffers.push(headers.subarray(from, taken * size))
        from = taken * size
        request.use()
        bytes += this.#payload(request, request.payload, WRITE_BYTES - bytes, buffers)
      }
    }
    if (from < taken * size) buffers.push(headers.subarray(from, taken * size))
    this.#waiting.splice(0, taken)
    if (buffers.length === 0) return
    this.#writing = true
    this.transport.write(buffers, () => {
      this.#writing = false
      this.moved()
      this.#end()
      this.#pump()
      if (!this.isEmpty) return
      this.#idle?.resolve()
      this.#idle = undefined
    })
  }

  /** The transport has closed: it uses nothing any more. */
  close(): void {
    this.#end()
    this.#rest?.request.release()
    this.#rest = undefined
    this.#waiting = []
    this.#idle?.resolve()
  }

  #end() {
    const ending = this.#ending
    this.#ending = []
    for (const request of ending) {
      request.isSent = true
      if (request.payload) request.release()
    }
  }

  #continue(buffers: Buffer[]) {
    if (!this.#rest) return 0
    const { request, data } = this.#rest
    this.#rest = undefined
    return this.#payload(request, data, WRITE_BYTES, buffers)
  }

  /** As much of a payload as there is room for, and at least a little; says how much. */
  #payload(request: Request, data: Buffer, room: number, buffers: Buffer[]) {
    const now = data.subarray(0, Math.max(room, 4096))
    buffers.push(now)
    if (now.length === data.length) this.#ending.push(request)
    else this.#rest = { request, data: data.subarray(now.length) }
    return now.length
  }

  #encode(request: Request, into: Buffer, at: number) {
    const { flags, command: type, cookie, offset, wireLength } = request
    if (this.extended) {
      into.writeUInt32BE(EXTENDED_REQUEST_MAGIC, at)
      into.writeUInt32BE(Math.floor(wireLength / 2 ** 32), at + extendedRequest.at.length)
      into.writeUInt32BE(wireLength % 2 ** 32, at + extendedRequest.at.length + 4)
    } else {
      into.writeUInt32BE(REQUEST_MAGIC, at)
      into.writeUInt32BE(wireLength, at + compactRequest.at.length)
    }
    // Both kinds have these in the same places.
    into.writeUInt16BE(flags, at + compactRequest.at.flags)
    into.writeUInt16BE(type, at + compactRequest.at.type)
    into.writeUInt32BE(this.tag, at + compactRequest.at.cookie)
    into.writeUInt32BE(cookie, at + compactRequest.at.cookie + 4)
    into.writeUInt32BE(Math.floor(offset / 2 ** 32), at + compactRequest.at.offset)
    into.writeUInt32BE(offset % 2 ** 32, at + compactRequest.at.offset + 4)
  }
}
