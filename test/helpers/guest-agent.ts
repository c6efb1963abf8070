// A guest agent as QEMU's: on a unix socket, with guest-sync-delimited and the fsfreeze commands, and what a test wants to go wrong.

import { createServer, type Socket } from 'node:net'

export interface FakeAgentOptions {
  /** May take its time, or throw what the agent then says. */
  readonly freeze?: () => void | Promise<void>
  readonly thaw?: () => void | Promise<void>
  /** Bytes before each answer, as of somebody who was not listened to. */
  readonly stale?: string
}

export interface FakeAgent extends AsyncDisposable {
  /** What was asked for, in order, without the syncs. */
  readonly asked: string[]
  frozen: boolean
}

const line = (value: object) => Buffer.from(`${JSON.stringify(value)}\n`)

export async function fakeAgent(path: string, { freeze, thaw, stale = '' }: FakeAgentOptions = {}): Promise<FakeAgent> {
  const sockets = new Set<Socket>()
  const agent = { asked: [] as string[], frozen: false }
  const answer = async (execute: string, args: { id?: number } | undefined): Promise<Buffer> => {
    if (execute === 'guest-sync-delimited')
      return Buffer.concat([Buffer.from(stale), Buffer.of(0xff), line({ return: args!.id })])
    agent.asked.push(execute)
    try {
      switch (execute) {
        case 'guest-fsfreeze-freeze':
          await freeze?.()
          agent.frozen = true
          return line({ return: 2 })
        case 'guest-fsfreeze-thaw':
          await thaw?.()
          agent.frozen = false
          return line({ return: 2 })
        case 'guest-fsfreeze-status':
          return line({ return: agent.frozen ? 'frozen' : 'thawed' })
        default:
          throw new Error(`The command ${execute} has not been found`)
      }
    } catch (error) {
      return line({ error: { class: 'GenericError', desc: (error as Error).message } })
    }
  }
  const server = createServer(socket => {
    sockets.add(socket)
    let text = ''
    let working = Promise.resolve()
    socket.on('error', () => socket.destroy())
    socket.on('data', data => {
      text += data.toString('latin1').replaceAll('\xff', '')
      for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
        const { execute, arguments: args } = JSON.parse(text.slice(0, end)) as { execute: string; arguments?: { id?: number } }
        text = text.slice(end + 1)
        working = working.then(async () => void socket.write(await answer(execute, args)))
      }
    })
  })
  await new Promise<void>(resolve => server.listen(path, resolve))
  return Object.assign(agent, {
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy()
      await new Promise(resolve => server.close(resolve))
    },
  })
}
