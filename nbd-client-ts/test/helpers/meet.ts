// A client in transmission with a peer that a test plays.

import { NbdClient } from '../../src/index.ts'
import { Command } from '../../src/protocol.ts'
import { type Answers, type AnyRequest, extendedAnswers, handshake, play, simpleAnswers, structuredAnswers } from './peer.ts'

export type Mode = 'simple' | 'structured' | 'extended'
const answersOf: Record<Mode, Answers> = { simple: simpleAnswers, structured: structuredAnswers, extended: extendedAnswers }
export const BASE = 'base:allocation'

/** A client in transmission with a peer that answers each request with what `reply` says of it; undefined: not at all. */
export async function meet(
  stack: AsyncDisposableStack,
  mode: Mode,
  reply: (request: AnyRequest, count: number) => Buffer | undefined,
  { answers, ...options }: { answers?: Answers; contexts?: readonly string[]; requestTimeout?: number } = {},
) {
  const uri = await play(stack, async peer => {
    if (!(await handshake(peer, { ...answersOf[mode], ...answers }))) return
    for (let count = 0; ; count++) {
      const request = await peer.request(mode === 'extended')
      if (request.type === Command.DISC) return void peer.socket.end()
      const answer = reply(request, count)
      if (answer) peer.send(answer)
    }
  })
  return stack.use(await NbdClient.connect(uri, { contexts: mode === 'simple' ? [] : [BASE], ...options }))
}
