// The control socket for tests: a server in this process, and a client that knows nothing of JSON but its lines.

import { mkdtemp, rm } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createLog } from '../../src/base/log.ts'
import { Turns } from '../../src/base/turns.ts'
import type { AnyCommand } from '../../src/control/command.ts'
import { commands } from '../../src/control/commands/index.ts'
import type { CommandContext } from '../../src/control/context.ts'
import { Events } from '../../src/control/events.ts'
import { QmpServer } from '../../src/control/qmp-server.ts'

export const HELLO = '{"execute":"qmp_capabilities"}'

/** A folder that goes with the stack. */
export async function scratchFolder(stack: AsyncDisposableStack) {
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-test-'))
  stack.defer(() => rm(folder, { recursive: true }))
  return folder
}

/** A server with these commands beside the product's own, which win; `log` holds what it logged. */
export async function controlServer(stack: AsyncDisposableStack, more: readonly AnyCommand[] = []) {
  const path = join(await scratchFolder(stack), 'control.sock')
  const log: string[] = []
  const events = new Events()
  const quit = Promise.withResolvers<void>()
  // Commands that look at the graph are tested with a whole daemon.
  const context = {
    emit: events.emit,
    turns: new Turns(),
    log: createLog('debug', { write: line => log.push(line) }, { journal: true }),
    quit: quit.resolve,
  } as CommandContext
  const server = stack.use(await QmpServer.listen({ monitors: [{ path }], commands: [...more, ...commands], context, events }))
  return { server, path, log, events, context, quit: quit.promise }
}

export interface Message {
  readonly QMP?: unknown
  readonly return?: unknown
  readonly error?: { readonly class: string; readonly desc: string; readonly data?: unknown }
  readonly id?: unknown
  readonly event?: string
  readonly data?: unknown
  readonly timestamp?: { readonly seconds: number; readonly microseconds: number }
}

/** A connection whose lines are read one by one. */
export class RawClient implements Disposable {
  #text = ''
  #waiting: (() => void)[] = []
  /** Whether the server has closed its side. */
  ended = false

  private constructor(readonly socket: Socket) {
    socket.on('data', (data: Buffer) => {
      this.#text += data.toString('latin1')
      this.#wake()
    })
    // A server that closes while we write is one way to end.
    for (const event of ['end', 'error', 'close'])
      socket.on(event, () => {
        this.ended = true
        this.#wake()
      })
  }

  static async connect(path: string, { allowHalfOpen = false } = {}) {
    const socket = connect({ path, allowHalfOpen })
    await new Promise<void>((resolve, reject) => socket.once('connect', resolve).once('error', reject))
    return new RawClient(socket)
  }

  /** Connected, greeted and negotiated. */
  static async ready(path: string) {
    const client = await RawClient.connect(path)
    await client.next()
    await client.ask(HELLO)
    return client
  }

  send(data: string | Buffer) {
    this.socket.write(data)
  }

  /** The next line, as it came; undefined when the server has closed. */
  async line(): Promise<string | undefined> {
    for (;;) {
      const end = this.#text.indexOf('\n')
      if (end >= 0) {
        const line = this.#text.slice(0, end + 1)
        this.#text = this.#text.slice(end + 1)
        return line
      }
      if (this.ended) return undefined
      await new Promise<void>(resolve => this.#waiting.push(resolve))
    }
  }

  async next(): Promise<Message> {
    const line = await this.line()
    if (line === undefined) throw new Error('the server closed the connection')
    return JSON.parse(line) as Message
  }

  /** Sends, and returns the next message. */
  ask(data: string | Buffer) {
    this.send(data)
    return this.next()
  }

  [Symbol.dispose]() {
    this.socket.destroy()
  }

  #wake() {
    for (const wake of this.#waiting.splice(0)) wake()
  }
}
