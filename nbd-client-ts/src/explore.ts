// Looking around on a server without entering an export.
//
// What is asked at the same time is asked in turn, for a server gets one option at a time; and nobody waits longer than `connectTimeout`
// for an answer.

import { openNegotiation } from './connect.ts'
import { NbdError, NbdTimeoutError } from './errors.ts'
import type { ListedExport, Negotiation } from './negotiation.ts'
import { type NbdTarget, type ServerOptions, goalOf } from './options.ts'
import type { ExportInfo, ReplyMode } from './session.ts'

export class NbdNegotiation implements AsyncDisposable {
  /** When the last of the questions so far is answered. */
  #last: Promise<unknown> = Promise.resolve()

  private constructor(
    private readonly negotiation: Negotiation,
    private readonly timeoutMs: number,
  ) {}

  /** Connects, and stops where an export would be entered. */
  static async open(target: NbdTarget, options: ServerOptions = {}): Promise<NbdNegotiation> {
    const goal = await goalOf(target, options)
    return new NbdNegotiation(await openNegotiation(goal, options.signal), goal.connectTimeout)
  }

  /** What was agreed on: with `simple` replies the server has no metadata contexts. */
  get replies(): ReplyMode {
    return this.negotiation.mode
  }

  /** The exports that the server is willing to show. */
  list(): Promise<ListedExport[]> {
    return this.#ask('LIST', () => this.negotiation.list())
  }

  /** What the server says of an export. */
  info(exportName: string): Promise<ExportInfo> {
    return this.#ask('INFO', () => this.negotiation.info(exportName))
  }

  /** The names of an export's metadata contexts: all, or those that queries such as "base:" or "qemu:dirty-bitmap:" find. */
  listContexts(exportName: string, queries: readonly string[] = []): Promise<string[]> {
    return this.#ask('LIST_META_CONTEXT', () => this.negotiation.listContexts(exportName, queries))
  }

  /** Leaves, as the protocol wants it. */
  close(): Promise<void> {
    return this.negotiation.abort()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #ask<T>(option: string, question: () => Promise<T>): Promise<T> {
    const answer = this.#last.then(() => this.#inTime(option, question))
    this.#last = Promise.allSettled([answer])
    return answer
  }

  async #inTime<T>(option: string, question: () => Promise<T>): Promise<T> {
    const late = () => this.negotiation.destroy(new NbdTimeoutError(`no answer to ${option} within ${this.timeoutMs} ms`))
    const timer = setTimeout(late, this.timeoutMs)
    try {
      return await question()
    } catch (error) {
      // Nobody knows where the next reply begins.
      if (error instanceof NbdError && error.fatal) this.negotiation.destroy(error)
      throw error
    } finally {
      clearTimeout(timer)
    }
  }
}
