// A session: whoever works in the repository says so in sessions/<uuid>, and says from time to time that it is still there.
//
// The record changes by compare-and-swap only. So when the collector, which cannot wait for ever for one that fell silent, swaps it
// to `expired`, the session learns of it at its next beat, and at the latest when it wants to commit: then it must not.
//
// A reader that was taken for dead (a laptop that slept) goes on under a new record, if what it reads is still there to be pinned.

import { randomUUID } from 'node:crypto'
import { hostname } from 'node:os'
import { PreconditionFailed, Unavailable, type Target } from './target.ts'
import { messageOf, NotFound } from '../base/errors.ts'
import { putIf } from './conditional.ts'
import { SessionExpired } from './faults.ts'
import { encodeSession, sessionKey, type SessionRecord } from './session-record.ts'

export const BEAT_MS = 60_000

export interface SessionOptions {
  /** How often it says that it is there; 0: never. */
  readonly beatMs?: number
  /** `false`: the store cannot compare and swap; the repository has one writer. */
  readonly cas?: boolean
  readonly signal?: AbortSignal | undefined
  /** Of a reader: run once a new record stands in for the one that others took for dead; it throws where that is too late. */
  readonly renewed?: () => Promise<void>
}

export class Session implements AsyncDisposable {
  readonly #stop = new AbortController()
  readonly #timer: NodeJS.Timeout | undefined
  /** One change of the record after another. */
  #last: Promise<unknown> = Promise.resolve()
  #ended = false
  #recorded = true
  readonly #called = () => this.stop(this.options.signal!.reason as Error)

  private constructor(
    readonly target: Target,
    private current: SessionRecord,
    private tag: string,
    private readonly options: SessionOptions,
  ) {
    const { beatMs = BEAT_MS, signal } = options
    signal?.addEventListener('abort', this.#called)
    if (beatMs > 0)
      this.#timer = setInterval(() => {
        this.beat().catch(messageOf) // a change that fails tells whoever wants to commit
      }, beatMs).unref()
  }

  /** Of a reader where nothing can be written: nobody knows of it. */
  static unrecorded(target: Target, first: Pick<SessionRecord, 'kind' | 'epoch' | 'pins'>, options: SessionOptions = {}) {
    const session = new Session(target, newRecord(first), '', { ...options, beatMs: 0 })
    session.#recorded = false
    return session
  }

  static async begin(target: Target, first: Pick<SessionRecord, 'kind' | 'epoch' | 'pins'>, options: SessionOptions = {}) {
    const record = newRecord(first)
    const { cas = true, signal } = options
    const tag = await putIf(target, sessionKey(record.id), encodeSession(record), { ifAbsent: true }, { cas, signal })
    return new Session(target, record, tag, options)
  }

  get id() {
    return this.current.id
  }

  get record() {
    return this.current
  }

  /** Aborts when the session has been taken for dead, or when its caller's signal does. Its work should stop then. */
  get signal(): AbortSignal {
    return this.#stop.signal
  }

  /** Changes the record; SessionExpired when somebody else has. */
  change(change: Partial<SessionRecord>): Promise<void> {
    const mine = this.#changeAfter(this.#last, change)
    this.#last = mine.catch(messageOf) // its failure is its caller's
    return mine
  }

  async #changeAfter(earlier: Promise<unknown>, change: Partial<SessionRecord>) {
    await earlier
    const next = { ...this.current, ...change, beat: this.current.beat + 1 }
    const { cas = true } = this.options
    try {
      this.tag = await putIf(this.target, sessionKey(this.id), encodeSession(next), { ifMatch: this.tag }, { cas })
      this.current = next
    } catch (error) {
      if (!(error instanceof PreconditionFailed)) throw error
      if (this.signal.aborted) throw this.signal.reason
      await this.#renew(error)
    }
  }

  /** SessionExpired where it cannot be. */
  async #renew(cause: Error) {
    const { renewed, cas = true } = this.options
    if (!renewed || this.#ended) throw this.#expired(cause)
    const record = { ...this.current, id: randomUUID(), state: 'active' as const, beat: 0, started: new Date().toISOString() }
    const tag = await putIf(this.target, sessionKey(record.id), encodeSession(record), { ifAbsent: true }, { cas })
    try {
      await renewed()
    } catch (error) {
      await this.target.delete([sessionKey(record.id)])
      if (!(error instanceof NotFound)) throw error
      throw this.#expired(error)
    }
    this.current = record
    this.tag = tag
  }

  /** Says that it is there. A store that does not answer is no reason to stop: the commit will tell. */
  async beat() {
    if (this.#recorded && this.current.state === 'active' && !this.#ended) await this.change({})
  }

  /** Ends it without a trace. What it has uploaded and not committed is the collector's. */
  async [Symbol.asyncDispose]() {
    if (this.#ended) return
    this.leave()
    if (!this.#recorded) return
    await this.#last
    try {
      await this.target.delete([sessionKey(this.id)])
    } catch (error) {
      // A record that stays is taken for dead in time. Nobody should hear of that instead of what they came for, or of why it failed.
      if (!(error instanceof Unavailable)) throw error
    }
  }

  /** No longer tells anybody, and leaves the record: it is committed, and whoever finds it finishes it. */
  leave() {
    this.#ended = true
    clearInterval(this.#timer)
    this.options.signal?.removeEventListener('abort', this.#called)
  }

  /** Its work is to stop, for this reason. */
  stop(reason: Error) {
    this.#stop.abort(reason)
  }

  #expired(cause: Error) {
    const what =
      this.current.kind === 'writer'
        ? 'nothing of it was committed'
        : 'what it reads was forgotten meanwhile, and may be deleted already'
    const fault = new SessionExpired(
      `the session in ${this.target.location} was silent for too long and is taken for dead; ${what}: start it again`,
      { cause },
    )
    this.stop(fault)
    return fault
  }
}

const newRecord = (first: Pick<SessionRecord, 'kind' | 'epoch' | 'pins'>): SessionRecord => ({
  version: 1,
  id: randomUUID(),
  state: 'active',
  beat: 0,
  host: hostname(),
  started: new Date().toISOString(),
  ...first,
})
