// One client of the control socket: negotiation, its requests one after the other, its replies, and the events it is sent.
//
// A request is taken when the reply before it has been handed to the system, so a client that does not read is not served, and costs
// no more memory. Events cannot wait for it: a client that leaves too many of them is disconnected, since one that misses an event
// without knowing is worse off. A client that has gone does not stop the command that it sent.

import type { Duplex } from 'node:stream'
import { faultIn, messageOf } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import { parseArguments } from './arguments.ts'
import type { ClientTransaction } from './client-transaction.ts'
import type { AnyCommand } from './command.ts'
import { versionInfo } from './commands/query-version.ts'
import type { CommandContext, Session } from './context.ts'
import { indented, isJsonObject, toText, type Json } from './json.ts'
import { JsonStream, type JsonItem } from './json-stream.ts'
import { CommandNotFound, findCommand, readRequest } from './request.ts'

/** Of events that a client has not read yet, beyond what the system holds for it. */
const MAX_EVENT_BYTES = 4 << 20
/** How long a client may take to read its last reply when we close. */
const GRACE_MS = 1000

export interface SessionOptions {
  readonly commands: ReadonlyMap<string, AnyCommand>
  readonly context: CommandContext
  /** What it is sent is indented. */
  readonly pretty: boolean
}

export class QmpSession implements Session, AsyncDisposable {
  transaction: ClientTransaction | undefined
  #negotiated = false
  #oob = false
  #stopped = false
  /** The answer that is being made. */
  #answering: Promise<void> = Promise.resolve()
  #eventBytes = 0

  private readonly byName: ReadonlyMap<string, AnyCommand>
  private readonly context: CommandContext
  private readonly log: Log
  private readonly pretty: boolean

  constructor(
    private readonly socket: Duplex,
    { commands, context, pretty }: SessionOptions,
  ) {
    this.byName = commands
    this.context = context
    this.log = context.log
    this.pretty = pretty
    socket.on('error', error => this.log.debug('a client of the control socket is gone', { err: error }))
  }

  /** Serves the client until one of us has closed. */
  async run(): Promise<void> {
    const stream = new JsonStream()
    try {
      await this.#write(toLine({ QMP: { version: versionInfo, capabilities: ['oob'] } })).done
      for await (const chunk of this.socket as AsyncIterable<Buffer>) {
        for (const item of stream.feed(chunk)) {
          if (this.#stopped) continue
          this.#answering = this.#answer(item)
          await this.#answering
        }
      }
    } catch (error) {
      if (!this.socket.destroyed) throw error
      this.log.debug('the connection to a client of the control socket ended', { err: error })
    }
  }

  /** Takes no more requests. Done when the last one has been answered. */
  async stop(): Promise<void> {
    this.#stopped = true
    await this.#answering
    await this.#rollBack()
  }

  async [Symbol.asyncDispose]() {
    const closed = new Promise<void>(resolve => this.socket.once('close', () => resolve()))
    if (this.socket.closed) return this.stop()
    const timer = setTimeout(() => this.socket.destroy(), GRACE_MS)
    await this.stop()
    this.socket.end(() => this.socket.destroy())
    await closed
    clearTimeout(timer)
  }

  /** A transaction goes with its client. */
  async #rollBack() {
    const { transaction } = this
    if (transaction?.isOpen)
      await this.context.turns.take(async () => transaction.isOpen && transaction.rollBack('its connection has ended'))
  }

  /** Tells the client of an event, as a whole line. */
  readonly notify = (line: string): void => {
    if (!this.#negotiated || this.socket.destroyed) return
    this.#eventBytes += line.length
    if (this.#eventBytes > MAX_EVENT_BYTES) {
      this.log.warn('a client of the control socket does not read its events, and was disconnected', { bytes: this.#eventBytes })
      this.socket.destroy()
      return
    }
    this.socket.write(this.#shown(line), 'latin1', () => (this.#eventBytes -= line.length))
  }

  async #answer(item: JsonItem): Promise<void> {
    if ('error' in item) return this.#write(toLine({ error: { class: 'GenericError', desc: item.error } })).done
    const id = isJsonObject(item.value) ? item.value['id'] : undefined
    const failure = (error: unknown) => toLine({ id, error: this.#errorOf(error, item.value) })
    const reply = async (work: () => unknown) => {
      try {
        return toLine({ return: (await work()) ?? {}, id })
      } catch (error) {
        return failure(error)
      }
    }
    let call
    try {
      call = this.#read(item.value)
    } catch (error) {
      return this.#write(failure(error)).done
    }
    const { run, turn, name } = call
    // Written within the turn: what the next command emits comes after the reply.
    const answer = async () => this.#write(await reply(run))
    const written = await (turn ? this.#inTurn(answer, name, failure) : answer())
    return written.done
  }

  /** Who waits too long for others is told, and need not break the connection off. */
  async #inTurn(answer: () => Promise<{ done: Promise<void> }>, name: string, failure: (error: unknown) => string) {
    try {
      return await this.context.turns.takeSoon(answer, name)
    } catch (error) {
      return this.#write(failure(error))
    }
  }

  /** What is to be done; whatever is wrong with the request itself is thrown. */
  #read(value: Json) {
    const request = readRequest(value, { oob: this.#oob })
    if (!this.#negotiated && request.command !== 'qmp_capabilities')
      throw new CommandNotFound("Expecting capabilities negotiation with 'qmp_capabilities'")
    const command = findCommand(this.byName, request)
    const args: unknown = parseArguments(command.arguments, request.arguments)
    return { run: () => command.run(args, this.context, this), turn: command.turn, name: command.name }
  }

  get commands() {
    return [...this.byName.values()]
  }

  negotiate(capabilities: readonly string[]) {
    if (this.#negotiated) throw new CommandNotFound('Capabilities negotiation is already complete, command ignored')
    this.#negotiated = true
    this.#oob = capabilities.includes('oob')
  }

  #errorOf(error: unknown, request: Json) {
    const fault = faultIn(error)
    if (fault) {
      const data = { ...(fault.exitCode !== 1 && { 'exit-code': fault.exitCode }), ...fault.details }
      return { class: fault.qmpClass, desc: fault.message, data: Object.keys(data).length > 0 ? data : undefined }
    }
    const command = isJsonObject(request) ? request['execute'] : undefined
    this.log.error('a command failed by a bug', { err: error, command })
    return { class: 'GenericError', desc: `internal error: ${messageOf(error)}` }
  }

  /** `done` when the system has it, or the client is gone. */
  #write(line: string): { done: Promise<void> } {
    if (this.socket.destroyed) return { done: Promise.resolve() }
    return { done: new Promise(resolve => this.socket.write(this.#shown(line), 'latin1', () => resolve())) }
  }

  #shown(line: string) {
    return this.pretty ? `${indented(line.trimEnd())}\r\n` : line
  }
}

const toLine = (message: object) => `${toText(message)}\r\n`
