// One client of the control socket: negotiation, its requests one after the other, its replies, and the events it is sent.
//
// A request is taken when the reply before it has been handed to the system, so a client that does not read is not served, and costs
// no more memory. Events cannot wait for it: a client that leaves too many of them is disconnected, since one that misses an event
// without knowing is worse off. A client that has gone does not stop the command that it sent.

import type { Socket } from 'node:net'
import { Fault, messageOf } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import { parseArguments } from './arguments.ts'
import type { AnyCommand } from './command.ts'
import { versionInfo } from './commands/query-version.ts'
import type { CommandContext, Session } from './context.ts'
import { isJsonObject, toText, type Json } from './json.ts'
import { JsonStream, type JsonItem } from './json-stream.ts'
import { CommandNotFound, findCommand, readRequest } from './request.ts'

/** Of events that a client has not read yet, beyond what the system holds for it. */
const MAX_EVENT_BYTES = 4 << 20
/** How long a client may take to read its last reply when we close. */
const GRACE_MS = 1000

export class QmpSession implements Session, AsyncDisposable {
  #negotiated = false
  #oob = false
  #stopped = false
  /** The answer that is being made. */
  #answering: Promise<void> = Promise.resolve()
  #eventBytes = 0

  constructor(
    private readonly socket: Socket,
    private readonly byName: ReadonlyMap<string, AnyCommand>,
    private readonly context: CommandContext,
    private readonly log: Log,
  ) {
    socket.on('error', error => log.debug('a client of the control socket is gone', { err: error }))
  }

  /** Serves the client until one of us has closed. */
  async run(): Promise<void> {
    const stream = new JsonStream()
    try {
      await this.#send({ QMP: { version: versionInfo, capabilities: ['oob'] } })
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
  }

  async [Symbol.asyncDispose]() {
    const closed = new Promise<void>(resolve => this.socket.once('close', () => resolve()))
    if (this.socket.closed) return
    const timer = setTimeout(() => this.socket.destroy(), GRACE_MS)
    await this.stop()
    this.socket.end(() => this.socket.destroy())
    await closed
    clearTimeout(timer)
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
    this.socket.write(line, 'latin1', () => (this.#eventBytes -= line.length))
  }

  async #answer(item: JsonItem): Promise<void> {
    if ('error' in item) return this.#send({ error: { class: 'GenericError', desc: item.error } })
    const id = isJsonObject(item.value) ? item.value['id'] : undefined
    try {
      await this.#send({ return: await this.#execute(item.value), id })
    } catch (error) {
      await this.#send({ id, error: this.#errorOf(error) })
    }
  }

  async #execute(value: Json): Promise<unknown> {
    const request = readRequest(value, { oob: this.#oob })
    if (!this.#negotiated && request.command !== 'qmp_capabilities')
      throw new CommandNotFound("Expecting capabilities negotiation with 'qmp_capabilities'")
    const command = findCommand(this.byName, request)
    const args: unknown = parseArguments(command.arguments, request.arguments)
    const run = () => command.run(args, this.context, this)
    return (await (command.turn ? this.context.turns.take(run) : run())) ?? {}
  }

  get commands() {
    return [...this.byName.values()]
  }

  negotiate(capabilities: readonly string[]) {
    if (this.#negotiated) throw new CommandNotFound('Capabilities negotiation is already complete, command ignored')
    this.#negotiated = true
    this.#oob = capabilities.includes('oob')
  }

  #errorOf(error: unknown) {
    if (error instanceof Fault) {
      const data = error.exitCode === 1 ? undefined : { 'exit-code': error.exitCode }
      return { class: error.qmpClass, desc: error.message, data }
    }
    this.log.error('a command failed by a bug', { err: error })
    return { class: 'GenericError', desc: `internal error: ${messageOf(error)}` }
  }

  /** Done when the system has it, or the client is gone. */
  async #send(message: object): Promise<void> {
    if (this.socket.destroyed) return
    const line = `${toText(message)}\r\n`
    await new Promise<void>(resolve => this.socket.write(line, 'latin1', () => resolve()))
  }
}
