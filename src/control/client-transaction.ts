// The transaction of one client: begun, filled by its commands, and ended by itself, by its time, or with its connection.

import { InvalidParameter } from '../base/errors.ts'
import { OpenTransaction, type Step } from '../transactions/open-transaction.ts'
import type { CommandContext } from './context.ts'
import { drainDisks } from './drain-disks.ts'

export type TransactionStatus = 'open' | 'failed' | 'committed' | 'rolled-back'

export class ClientTransaction {
  readonly #transaction: OpenTransaction
  readonly #timer: NodeJS.Timeout
  #ended: { readonly status: 'committed' | 'rolled-back'; readonly reason?: string } | undefined

  /** Rolled back by itself, in a turn, when it is still open after `timeoutMs`. */
  constructor(
    private readonly context: CommandContext,
    { grouped, timeoutMs }: { readonly grouped: boolean; readonly timeoutMs: number },
  ) {
    this.#transaction = new OpenTransaction(grouped)
    this.#timer = setTimeout(() => this.#expire(timeoutMs), timeoutMs)
  }

  get isOpen() {
    return this.#ended === undefined
  }

  get status(): TransactionStatus {
    if (this.#ended) return this.#ended.status
    return this.steps.some(({ status }) => status === 'failed') ? 'failed' : 'open'
  }

  get steps() {
    return this.#transaction.steps
  }

  /** Why it was rolled back, where nobody asked for it. */
  get reason() {
    return this.#ended?.reason
  }

  add(step: Step) {
    this.#checkOpen()
    return this.#transaction.add(step)
  }

  async commit() {
    this.#checkOpen()
    this.#end('rolled-back') // until it is better
    await this.#transaction.commit((disks, commits) => drainDisks(this.context.graph, disks, commits))
    this.#ended = { status: 'committed' }
  }

  async rollBack(reason?: string) {
    this.#checkOpen()
    this.#end('rolled-back', reason)
    await this.#transaction.rollBack()
  }

  #end(status: 'rolled-back', reason?: string) {
    clearTimeout(this.#timer)
    this.#ended = { status, ...(reason !== undefined && { reason }) }
  }

  #checkOpen() {
    if (!this.#ended) return
    const why = this.#ended.reason === undefined ? '' : `: ${this.#ended.reason}`
    throw new InvalidParameter(`the transaction is ${this.#ended.status}${why}; transaction-begin begins another`)
  }

  #expire(timeoutMs: number) {
    const { turns, log } = this.context
    const reason = `it was open for longer than ${timeoutMs / 1000} s`
    const failed = (error: unknown) => log.error('a transaction could not be rolled back', { err: error })
    turns.take(async () => this.isOpen && this.rollBack(reason)).catch(failed)
  }
}
