// A request: what is sent, what becomes of its answer, and when its promise settles.
//
// Invariant: a promise settles when the outcome is known *and* nobody uses the request's buffers any more. Whoever uses them (the
// socket that still sends a payload, the kernel that may fill a buffer) says so by `use`, and `release` when done. So a caller may
// do as he likes with his buffers once the promise has settled, however it has.

import { NbdProtocolError, NbdReplyError, type ReplyProblem } from './errors.ts'
import { Command, CommandFlag, nameOf } from './protocol.ts'
import type { Session } from './session.ts'

/** Of one request: what is kept, and what is borne with. */
const KEPT_PROBLEMS = 1000
const MOST_PROBLEMS = 65_536

export abstract class Request<Result = unknown> {
  /** While it is on a connection. */
  cookie = 0
  /** How often it was sent. */
  attempts = 0
  payload: Buffer | undefined
  /** The socket has taken all of it. */
  isSent = false
  /** As the header states it. */
  wireLength: number
  problems: ReplyProblem[] = []
  #problemCount = 0
  readonly #settled = Promise.withResolvers<unknown>()
  #users = 0
  #settle: (() => void) | undefined

  constructor(
    readonly command: number,
    public flags: number,
    readonly offset: number,
    readonly length: number,
  ) {
    this.wireLength = length
  }

  get promise(): Promise<Result> {
    return this.#settled.promise as Promise<Result>
  }

  /** Bytes of memory and of the line that it takes. */
  get weight(): number {
    return this.command === Command.READ || this.command === Command.WRITE ? this.length : 0
  }

  /** The outcome is known: what the peer says from now on does not matter. */
  get isOver(): boolean {
    return this.#settle !== undefined
  }

  use(): void {
    this.#users++
  }

  release(): void {
    if (--this.#users === 0) this.#settle?.()
  }

  reject(error: Error): void {
    this.#end(() => this.#settled.reject(error))
  }

  protected resolve(result: Result): void {
    this.#end(() => this.#settled.resolve(result))
  }

  #end(settle: () => void) {
    if (this.#settle) return
    this.#settle = settle
    if (this.#users === 0) settle()
  }

  // --- What the connection and its parser say ---

  /** It is about to be sent on a connection, perhaps not for the first time. */
  begin(_session: Session): void {
    this.attempts++
    this.isSent = false
    this.problems = []
    this.#problemCount = 0
  }

  /** Data for this range comes next. Where to? Undefined: nowhere. */
  data(_offset: number, _length: number): Buffer | undefined {
    throw new NbdProtocolError(`data in reply to ${this.title}`)
  }

  hole(_offset: number, _length: number): void {
    throw new NbdProtocolError(`a hole in reply to ${this.title}`)
  }

  /** Extents of a context come next, to what is returned. */
  context(_id: number): ExtentSink {
    throw new NbdProtocolError(`block status in reply to ${this.title}`)
  }

  problem(problem: ReplyProblem): void {
    if (++this.#problemCount > MOST_PROBLEMS)
      throw new NbdProtocolError(`more than ${MOST_PROBLEMS} errors in reply to ${this.title}`)
    if (this.#problemCount <= KEPT_PROBLEMS) this.problems.push(problem)
  }

  /** The answer is complete. */
  answered(): void {
    if (this.problems.length > 0) this.reject(new NbdReplyError(this.command, this.offset, this.length, this.problems))
    else this.complete()
  }

  /** There were no problems. Throws NbdProtocolError where something is missing. */
  protected abstract complete(): void

  /** For messages. */
  get title(): string {
    return `${nameOf(Command, this.command)} of ${this.length} bytes at ${this.offset}`
  }
}

export interface ExtentSink {
  add(length: number, status: number | bigint): void
}

/** A request whose answer is yes or no. */
export class PlainRequest extends Request<void> {
  protected complete(): void {
    this.resolve()
  }
}

export class WriteRequest extends PlainRequest {
  constructor(flags: number, offset: number, data: Buffer) {
    super(Command.WRITE, flags, offset, data.length)
    this.payload = data
  }

  override begin(session: Session): void {
    super.begin(session)
    this.flags = session.mode === 'extended' ? this.flags | CommandFlag.PAYLOAD_LEN : this.flags & ~CommandFlag.PAYLOAD_LEN
  }
}
