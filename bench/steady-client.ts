// One connection of steady.ts, in a thread of its own: as many requests in flight all the time, and an answer is counted once all of it is here.
//
// Simple replies, since all of them are of one length then. EXPORT_NAME, since every server knows it.

import { once } from 'node:events'
import net from 'node:net'
import { parentPort, workerData } from 'node:worker_threads'
import {
  Command,
  Option,
  OPTION_MAGIC,
  REQUEST_MAGIC,
  SIMPLE_REPLY_MAGIC,
  clientFlags,
  exportNameReply,
  greeting,
  optionHeader,
  request,
  simpleReply,
} from 'nbd-client-ts/protocol'
import type { SteadyLoad } from './steady.ts'

/** In bytes: of the disk, from `start` on. */
export interface Task extends Omit<SteadyLoad, 'connections'> {
  readonly socket: string
  readonly name: string
  readonly start: number
}

export interface Result {
  readonly count: number
  readonly seconds: number
}

/** NBD_FLAG_C_FIXED_NEWSTYLE and NBD_FLAG_C_NO_ZEROES. */
const FLAGS = 3
/** So many places are asked for over and over again where they are in no order. */
const PLACES = 16_384
const RECEIVE = 1 << 20

class Client {
  readonly #received = Buffer.alloc(RECEIVE)
  readonly #requests: Buffer
  readonly #requestSize: number
  readonly #replySize: number
  readonly #places: number
  readonly #socket: net.Socket
  readonly #done = Promise.withResolvers<Result>()
  #greeted = Promise.withResolvers<void>()
  /** Bytes of the handshake that are still to come. */
  #expected = greeting.size
  #isServed = false
  #next = 0
  #inFlight = 0
  #count = 0
  /** Of the reply that is coming. */
  #at = 0
  #begun = 0

  constructor(private readonly task: Task) {
    const writes = task.rw.endsWith('write')
    this.#requestSize = request.size + (writes ? task.block : 0)
    this.#replySize = simpleReply.size + (writes ? 0 : task.block)
    const blocks = Math.floor(task.size / task.block)
    this.#places = task.rw.startsWith('rand') ? Math.min(PLACES, blocks) : blocks
    this.#requests = this.#encode(blocks, writes)
    this.#socket = net.connect({
      path: task.socket,
      onread: { buffer: this.#received, callback: count => this.#arrived(count) },
    })
    this.#socket.on('error', error => this.#done.reject(error))
    this.#socket.on('close', () => this.#done.reject(new Error(`the server has closed the connection to '${task.name}'`)))
    this.#done.promise.catch((error: unknown) => this.#greeted.reject(error))
  }

  async run(): Promise<Result> {
    await once(this.#socket, 'connect')
    await this.#greeted.promise
    const name = Buffer.from(this.task.name)
    this.#expected = exportNameReply.size
    this.#greeted = Promise.withResolvers<void>()
    this.#socket.write(
      Buffer.concat([
        clientFlags.bytes({ flags: FLAGS }),
        optionHeader.bytes({ magic: OPTION_MAGIC, option: Option.EXPORT_NAME, length: name.length }),
        name,
      ]),
    )
    await this.#greeted.promise
    this.#isServed = true
    this.#begun = performance.now()
    this.#ask(this.task.depth)
    const result = await this.#done.promise
    this.#socket.end(request.bytes({ magic: REQUEST_MAGIC, flags: 0, type: Command.DISC, cookie: 0n, offset: 0n, length: 0 }))
    return result
  }

  /** All that will be asked, one behind the other; and the first ones again, so that as many as may be in flight are in one piece. */
  #encode(blocks: number, writes: boolean) {
    const { block, depth, rw, start, round } = this.task
    const all = Buffer.alloc((this.#places + depth) * this.#requestSize, 0xa5)
    let random = round
    for (let index = 0; index < this.#places + depth; index++) {
      if (index === this.#places) random = round
      random = (Math.imul(random, 1_664_525) + 1_013_904_223) >>> 0
      const place = rw.startsWith('rand') ? Math.floor((random / 2 ** 32) * blocks) : index % blocks
      const fields = { flags: 0, type: writes ? Command.WRITE : Command.READ, cookie: BigInt(index), length: block }
      request.encode({ magic: REQUEST_MAGIC, ...fields, offset: BigInt(start + place * block) }, all, index * this.#requestSize)
    }
    return all
  }

  #ask(count: number) {
    const at = this.#next * this.#requestSize
    this.#socket.write(this.#requests.subarray(at, at + count * this.#requestSize))
    this.#next = (this.#next + count) % this.#places
    this.#inFlight += count
  }

  #arrived(count: number): boolean {
    try {
      if (this.#isServed) this.#answers(count)
      else if ((this.#expected -= count) === 0) this.#greeted.resolve()
      else if (this.#expected < 0) throw new Error(`'${this.task.name}' is not served as it should`)
    } catch (error) {
      this.#done.reject(error instanceof Error ? error : new Error(String(error)))
      this.#socket.destroy()
      return false
    }
    return true
  }

  #answers(count: number) {
    const bytes = this.#received
    let answered = 0
    for (let at = 0; at < count;) {
      // A header that comes in two pieces is not looked at.
      if (this.#at === 0 && count - at >= simpleReply.size) {
        const { magic, error } = simpleReply.at
        if (bytes.readUInt32BE(at + magic) !== SIMPLE_REPLY_MAGIC || bytes.readUInt32BE(at + error) !== 0)
          throw new Error(`a request to '${this.task.name}' has failed`)
      }
      const part = Math.min(this.#replySize - this.#at, count - at)
      at += part
      this.#at += part
      if (this.#at < this.#replySize) break
      this.#at = 0
      answered++
    }
    if (answered === 0) return
    this.#count += answered
    this.#inFlight -= answered
    const seconds = (performance.now() - this.#begun) / 1000
    if (seconds < this.task.seconds) this.#ask(answered)
    else if (this.#inFlight === 0) this.#done.resolve({ count: this.#count, seconds })
  }
}

parentPort!.postMessage(await new Client(workerData as Task).run())
