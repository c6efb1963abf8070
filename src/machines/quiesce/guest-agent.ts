// Asks QEMU's guest agent, over the unix socket that its virtio-serial port has on the host: one question for each connection.
//
// A guest that was asked before and did not answer may do so now, so each connection begins with guest-sync-delimited: whatever comes
// before the byte 0xFF and the number that was asked for belongs to somebody else.

import { randomInt } from 'node:crypto'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { Fault, strerror } from '../../base/errors.ts'

/** The agent in the guest is not there, does not answer, or says no. */
export class AgentFailed extends Fault {}

export type AgentCommand = 'guest-fsfreeze-freeze' | 'guest-fsfreeze-thaw' | 'guest-fsfreeze-status'

const DELIMITER = 0xff
const NEWLINE = 0x0a
/** Its answers are short. */
const MAX_ANSWER = 65536

/** @throws AgentFailed */
export async function askAgent(path: string, command: AgentCommand, timeoutMs: number): Promise<unknown> {
  const socket = connect(path)
  const late = () => socket.destroy(new AgentFailed(`the guest agent at ${path} did not answer within ${timeoutMs / 1000} s`))
  const timer = setTimeout(late, timeoutMs)
  try {
    await once(socket, 'connect')
    const answers = new Answers(socket, path)
    const id = randomInt(1, 2 ** 31)
    socket.write(Buffer.concat([Buffer.of(DELIMITER), lineOf('guest-sync-delimited', { id })]))
    do await answers.skipPast(DELIMITER)
    while (!isAnswer(await answers.line(), id))
    socket.write(lineOf(command))
    return returned(await answers.line(), command)
  } catch (error) {
    if (error instanceof Fault) throw error
    throw new AgentFailed(`the guest agent at ${path} cannot be reached: ${strerror(error)}`, { cause: error })
  } finally {
    clearTimeout(timer)
    socket.destroy()
  }
}

const lineOf = (execute: string, args?: object) =>
  Buffer.from(`${JSON.stringify({ execute, ...(args && { arguments: args }) })}\n`)

const isAnswer = (line: string, id: number) => {
  const answer = parsed(line)
  return answer !== undefined && answer['return'] === id
}

function returned(line: string, command: AgentCommand): unknown {
  const answer = parsed(line)
  if (answer && 'return' in answer) return answer['return']
  const { desc } = (answer?.['error'] ?? {}) as { desc?: unknown }
  const said = typeof desc === 'string' ? desc : `something that is no answer: ${JSON.stringify(line.slice(0, 200))}`
  throw new AgentFailed(`the guest agent says to ${command}: ${said}`)
}

function parsed(line: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(line)
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : undefined
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}

class Answers {
  #bytes = Buffer.alloc(0)
  readonly #chunks: AsyncIterator<Buffer>

  constructor(
    socket: Socket,
    private readonly path: string,
  ) {
    this.#chunks = (socket as AsyncIterable<Buffer>)[Symbol.asyncIterator]()
  }

  async skipPast(byte: number) {
    let at = this.#bytes.indexOf(byte)
    for (; at < 0; at = this.#bytes.indexOf(byte)) {
      this.#bytes = Buffer.alloc(0)
      await this.#more()
    }
    this.#bytes = this.#bytes.subarray(at + 1)
  }

  async line(): Promise<string> {
    while (!this.#bytes.includes(NEWLINE)) await this.#more()
    const at = this.#bytes.indexOf(NEWLINE)
    const line = this.#bytes.subarray(0, at).toString('utf8')
    this.#bytes = this.#bytes.subarray(at + 1)
    return line
  }

  async #more() {
    const next = await this.#chunks.next()
    if (next.done)
      throw new AgentFailed(`the guest agent at ${this.path} has ended the connection; does the agent run in the guest?`)
    this.#bytes = Buffer.concat([this.#bytes, next.value])
    if (this.#bytes.length > MAX_ANSWER) throw new AgentFailed(`the guest agent at ${this.path} says more than an answer has`)
  }
}
