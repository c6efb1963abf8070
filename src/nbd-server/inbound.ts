// What a client sends: small things are gathered in a buffer, large payloads go straight to where they are wanted.
//
// The socket is given its buffer for the next bytes before it knows when they come, and keeps it (net.Socket's `onread`). So what is
// not consumed yet is moved in front of that buffer, where there is RESERVE for it; when more than that is left over, because a
// request has to wait, the socket is given the other of two buffers and stops reading until there is room.

/** One read of a socket gets at most this much; libuv's own choice, too. */
const CAPACITY = 64 << 10
/** What may be left over while reading goes on. Any header fits. */
const RESERVE = 4096
/** A payload that lacks at least this much is received in place. */
const DIRECT = 8 << 10

/** Where bytes come from: it can be told to wait. */
export interface Source {
  pause(): void
  resume(): void
}

const newBuffer = (): Buffer => Buffer.allocUnsafeSlow(RESERVE + CAPACITY)

export class Inbound {
  #buffer = newBuffer()
  #start = RESERVE
  #end = RESERVE
  #other: Buffer | undefined
  /** What the socket was given last: the payload, the other buffer, or the room behind RESERVE in this one. */
  #given: 'payload' | 'other' | 'room' = 'room'
  #room = this.#buffer.subarray(RESERVE)
  #payload: Buffer | undefined
  #filled = 0
  #paused = false
  /** Somebody else receives, until it is put back. */
  #isTaken = false
  #ended = false
  /** What came while there was no room, from sockets that bring buffers of their own. */
  #rest: Buffer | undefined

  /** Called whenever something came, or nothing will any more. */
  onProgress = () => {}

  /** To be set before anything comes. */
  source: Source = { pause() {}, resume() {} }

  get available() {
    return this.#end - this.#start
  }

  /** Nothing comes behind what is available. */
  get ended() {
    return this.#ended && !this.#rest
  }

  /** Where the available bytes are: from `start` on. */
  get bytes() {
    return this.#buffer
  }

  get start() {
    return this.#start
  }

  consume(count: number) {
    this.#start += count
    if (this.#paused && this.available <= RESERVE) this.#resume()
  }

  /** True when all of it is filled; false when the rest is still to come: then call it again, with the same, after progress. */
  fill(payload: Buffer) {
    if (this.#payload !== payload) {
      this.#payload = payload
      this.#filled = 0
    }
    const count = Math.min(this.available, payload.length - this.#filled)
    if (count > 0) {
      this.#buffer.copy(payload, this.#filled, this.#start, this.#start + count)
      this.#filled += count
      this.consume(count)
    }
    if (this.#filled < payload.length) return false
    this.#payload = undefined
    return true
  }

  /** How many of `count` are still to be skipped when more has come. */
  skip(count: number) {
    const now = Math.min(count, this.available)
    this.consume(now)
    return count - now
  }

  /** Where the socket is to put what comes next. */
  space(): Buffer {
    const lacking = this.#payload ? this.#payload.length - this.#filled : 0
    const { available } = this
    if (lacking >= DIRECT && available === 0) {
      this.#given = 'payload'
      return this.#payload!.subarray(this.#filled)
    }
    if (available > RESERVE) {
      this.#given = 'other'
      return (this.#other ??= newBuffer()).subarray(RESERVE)
    }
    if (this.#end !== RESERVE) {
      this.#buffer.copyWithin(RESERVE - available, this.#start, this.#end)
      this.#start = RESERVE - available
      this.#end = RESERVE
    }
    this.#given = 'room'
    return this.#room
  }

  /** That many bytes were put into the last `space()`. False: there is no room for more, until `source.resume()` is called. */
  arrived(count: number) {
    if (this.#given === 'payload') this.#filled += count
    else {
      if (this.#given === 'other') this.#swap()
      this.#end += count
    }
    return this.#progress()
  }

  /** The same, for sockets that bring their own buffers. */
  feed(chunk: Buffer) {
    for (let at = 0; at < chunk.length;) {
      if (this.#paused) {
        this.#rest = chunk.subarray(at)
        this.source.pause()
        return
      }
      const space = this.space()
      const count = chunk.copy(space, 0, at)
      at += count
      this.arrived(count)
    }
  }

  /** All that is available, as if it had never come. No payload is being received. */
  take(): Uint8Array {
    const bytes = new Uint8Array(this.#buffer.subarray(this.#start, this.#end))
    this.#start = this.#end
    this.#paused = this.#isTaken = true // until they are put back: who is about to go on does not
    return bytes
  }

  /** Puts back in front of what comes next; nothing is available. False: there is no room for more, as of `arrived`, or all was taken again. */
  unread(bytes: Uint8Array): boolean {
    this.#paused = this.#isTaken = false
    if (this.#given === 'room' && bytes.length <= RESERVE) this.#start = RESERVE - bytes.length
    else {
      const given = this.#given === 'room' ? this.#buffer : this.#other!
      // The socket keeps the buffer that it was given.
      this.#buffer = Buffer.allocUnsafeSlow(Math.max(bytes.length, RESERVE + CAPACITY))
      this.#room = this.#buffer.subarray(RESERVE)
      this.#other = given
      this.#given = 'other'
      this.#start = this.#buffer.length - bytes.length
    }
    this.#end = this.#start + bytes.length
    this.#buffer.set(bytes, this.#start)
    return this.#progress()
  }

  /** Tells of it. Whoever hears it may take all that is there, and to go on reading then would be to read beside him. */
  #progress() {
    this.onProgress()
    this.#paused = this.#isTaken || this.available > RESERVE
    return !this.#paused
  }

  end() {
    this.#ended = true
    if (!this.#rest) this.onProgress()
  }

  #resume() {
    this.#paused = false
    // Not from within: whoever consumes has not finished yet, and until then what is left is still to come.
    queueMicrotask(() => {
      const rest = this.#rest
      this.#rest = undefined
      if (rest) this.feed(rest)
      if (this.#paused) return
      if (this.#ended && !this.#rest) this.onProgress()
      this.source.resume()
    })
  }

  /** Called only when what is left fits in front. */
  #swap() {
    const left = this.available
    const next = this.#other!
    this.#buffer.copy(next, RESERVE - left, this.#start, this.#end)
    this.#other = this.#buffer
    this.#buffer = next
    this.#room = next.subarray(RESERVE)
    this.#start = RESERVE - left
    this.#end = RESERVE
  }
}
