// Block status: for every context asked about, the extents from the request's offset on.

import { NbdProtocolError } from './errors.ts'
import { BASE_ALLOCATION, Command, CommandFlag, TransmissionFlag, blockStatusPayload } from './protocol.ts'
import { type ExtentSink, Request } from './request.ts'
import type { Session } from './session.ts'

/** What one reply says of one context: neighbours from the request's offset on. */
export class ExtentList implements ExtentSink {
  readonly lengths: number[] = []
  readonly statuses: (number | bigint)[] = []
  /** Bytes; never more than were asked about. */
  covered = 0

  constructor(
    private readonly name: string,
    private readonly most: number,
  ) {}

  /** What reaches beyond the request is cut off: the caller did not ask, and the export may end there. */
  add(length: number, status: number | bigint): void {
    if (this.name === BASE_ALLOCATION && status > 0xffff_ffff)
      throw new NbdProtocolError(`${this.name} has 32 bits, and the status 0x${status.toString(16)} more`)
    const useful = Math.min(length, this.most - this.covered)
    if (useful === 0) return
    this.covered += useful
    if (this.statuses.at(-1) === status) this.lengths[this.lengths.length - 1]! += useful
    else {
      this.lengths.push(useful)
      this.statuses.push(status)
    }
  }
}

/** Each context by its name. */
export type BlockStatus = ReadonlyMap<string, ExtentList>

export class StatusRequest extends Request<BlockStatus> {
  /** Those asked about, by this connection's ids; and those that others asked about. */
  #wanted = new Map<number, string>()
  #ignored = new Map<number, string>()
  #lists = new Map<string, ExtentList>()

  /** All of `contexts` must be agreed on with the session. */
  constructor(
    offset: number,
    length: number,
    private readonly contexts: readonly string[],
  ) {
    super(Command.BLOCK_STATUS, 0, offset, length)
  }

  override begin(session: Session): void {
    super.begin(session)
    this.#lists = new Map()
    this.#wanted = new Map([...session.contexts].filter(([, name]) => this.contexts.includes(name)))
    this.#ignored = new Map([...session.contexts].filter(([id]) => !this.#wanted.has(id)))
    const filtered =
      session.mode === 'extended' &&
      (session.export.flags & TransmissionFlag.BLOCK_STATUS_PAYLOAD) !== 0 &&
      this.#ignored.size > 0
    this.flags = filtered ? CommandFlag.PAYLOAD_LEN : 0
    this.payload = filtered ? filterOf(this.length, [...this.#wanted.keys()]) : undefined
    this.wireLength = this.payload?.length ?? this.length
    if (filtered) this.#ignored.clear()
  }

  override context(id: number): ExtentSink {
    const name = this.#wanted.get(id) ?? this.#ignored.get(id)
    if (name === undefined)
      throw new NbdProtocolError(`block status of a context (id ${id}) that was not agreed on, in reply to ${this.title}`)
    if (this.#lists.has(name)) throw new NbdProtocolError(`block status of '${name}' twice in reply to ${this.title}`)
    const list = new ExtentList(name, this.#ignored.has(id) ? 0 : this.length)
    this.#lists.set(name, list)
    return list
  }

  protected override complete(): void {
    for (const name of [...this.#wanted.values(), ...this.#ignored.values()])
      if (!this.#lists.has(name)) throw new NbdProtocolError(`no block status of '${name}' in reply to ${this.title}`)
    for (const name of this.#ignored.values()) this.#lists.delete(name)
    this.resolve(this.#lists)
  }
}

/** The payload that names the contexts; the effect's length moves into it. */
function filterOf(length: number, ids: readonly number[]): Buffer {
  const payload = Buffer.alloc(blockStatusPayload.size + 4 * ids.length)
  blockStatusPayload.encode({ length: BigInt(length) }, payload)
  ids.forEach((id, index) => payload.writeUInt32BE(id, blockStatusPayload.size + 4 * index))
  return payload
}
