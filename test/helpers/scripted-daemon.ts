// A daemon that is played: it speaks QMP on a unix socket and answers each command with what a test has written down.

import { mkdtemp, rm } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** What a command returns, or how it is answered; thrown Refusals are errors. */
type Replies = Readonly<Record<string, unknown>>

/** As a reply: none comes. */
export const NEVER = Symbol('never')

export class Refusal extends Error {
  constructor(
    message: string,
    readonly exitCode?: number,
    readonly qmpClass = 'GenericError',
  ) {
    super(message)
  }
}

interface Request {
  readonly execute: string
  readonly arguments?: Record<string, unknown>
  readonly id?: unknown
}

/** One that listens until the stack is disposed, and remembers what it was asked. */
export async function scriptedDaemon(stack: AsyncDisposableStack, replies: Replies) {
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-cli-'))
  stack.defer(() => rm(folder, { recursive: true }))
  const socket = join(folder, 'control.sock')
  const asked: { command: string; args: Record<string, unknown> }[] = []
  const clients = new Set<Socket>()

  const answer = ({ execute, arguments: args = {}, id }: Request) => {
    if (execute === 'qmp_capabilities') return { return: {}, id }
    asked.push({ command: execute, args })
    try {
      if (!(execute in replies)) throw new Refusal(`The command ${execute} has not been found`, undefined, 'CommandNotFound')
      const reply = replies[execute]
      return { return: typeof reply === 'function' ? (reply as (args: object) => unknown)(args) : reply, id }
    } catch (error) {
      if (!(error instanceof Refusal)) throw error
      const data = error.exitCode === undefined ? undefined : { 'exit-code': error.exitCode }
      return { error: { class: error.qmpClass, desc: error.message, data }, id }
    }
  }

  const server = createServer(client => {
    clients.add(client)
    client.once('close', () => clients.delete(client))
    // A client may go whenever it likes.
    client.on('error', () => client.destroy())
    client.write(
      '{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": "played"}, "capabilities": []}}\r\n',
    )
    let text = ''
    client.on('data', data => {
      const lines = `${text}${data.toString()}`.split('\n')
      text = lines.pop()!
      for (const line of lines) {
        const reply = answer(JSON.parse(line) as Request)
        if (reply.return !== NEVER) client.write(`${JSON.stringify(reply)}\r\n`)
      }
    })
  })
  await new Promise<void>(resolve => server.listen(socket, resolve))
  stack.defer(() => {
    for (const client of clients) client.destroy()
    return new Promise<void>(resolve => server.close(() => resolve()))
  })

  return {
    socket,
    folder,
    asked,
    /** To every client there is. */
    emit(event: string, data: object) {
      const timestamp = { seconds: 1_764_031_327, microseconds: 0 }
      for (const client of clients) client.write(`${JSON.stringify({ event, data, timestamp })}\r\n`)
    },
    hangUp() {
      for (const client of clients) client.destroy()
    },
  }
}
