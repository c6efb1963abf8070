// From an address to a connection in transmission: the order of the options, and what is done where a server lacks one.
//
//   STARTTLS (where TLS is wanted: then never without)
//   EXTENDED_HEADERS, or else STRUCTURED_REPLY, or else neither
//   SET_META_CONTEXT, with wildcards looked up by LIST_META_CONTEXT
//   GO, or else EXPORT_NAME
//
// A server that closes the connection on an option it does not know is asked again without that option.

import type tls from 'node:tls'
import { NbdConnectionError, NbdError, NbdOptionError, NbdTimeoutError, NbdUsageError } from './errors.ts'
import { Negotiation } from './negotiation.ts'
import type { Session } from './session.ts'
import { isHangUp } from './tls-failure.ts'
import { Transport, nameOfAddress } from './transport.ts'
import type { NbdAddress, NbdDial } from './uri.ts'

export interface Goal {
  readonly address: NbdAddress | NbdDial
  /** What `tls.connect` is told; undefined: no TLS. */
  readonly tls: tls.ConnectionOptions | undefined
  readonly exportName: string
  readonly contexts: readonly string[]
  readonly structuredReplies: 'auto' | 'never'
  readonly extendedHeaders: 'auto' | 'never'
  /** For all of it, in ms. */
  readonly connectTimeout: number
  /** Of TCP, in ms; 0: none. */
  readonly keepAlive: number
  /** Of a host's addresses; undefined: any. */
  readonly family: 4 | 6 | undefined
}

export interface Connected {
  readonly transport: Transport
  readonly session: Session
}

export function connect(goal: Goal, signal?: AbortSignal): Promise<Connected> {
  return attempts(goal, signal, (transport, without, trying) => enter(goal, transport, without, trying))
}

/** The first steps alone, for who wants to take the others himself. */
export function openNegotiation(goal: Goal, signal?: AbortSignal): Promise<Negotiation> {
  return attempts(goal, signal, async (transport, without, trying) => {
    const negotiation = await Negotiation.begin(transport)
    if (!negotiation.isFixedNewstyle) throw new NbdUsageError('the server is too old for any option', 'ENOTSUP')
    return orLeave(negotiation, async () => {
      if (goal.tls) await negotiation.startTls(goal.tls)
      await agreeOnReplies(negotiation, without, trying)
      return negotiation
    })
  })
}

type Avoidable = 'EXTENDED_HEADERS' | 'STRUCTURED_REPLY' | 'GO'
/** Options to leave out. */
type Without = Set<Avoidable>
/** The option that is being tried. */
interface Trying {
  option?: Avoidable | undefined
}

async function attempts<T>(
  goal: Goal,
  signal: AbortSignal | undefined,
  work: (transport: Transport, without: Without, trying: Trying) => Promise<T>,
): Promise<T> {
  const deadline = performance.now() + goal.connectTimeout
  const without: Without = new Set()
  if (goal.extendedHeaders === 'never' || goal.structuredReplies === 'never') without.add('EXTENDED_HEADERS')
  if (goal.structuredReplies === 'never') without.add('STRUCTURED_REPLY')
  for (;;) {
    const trying: Trying = {}
    try {
      return await withTransport(goal, deadline - performance.now(), signal, transport => work(transport, without, trying))
    } catch (error) {
      const closed = error instanceof NbdConnectionError || isHangUp(error)
      if (!closed || trying.option === undefined || without.has(trying.option)) throw error
      without.add(trying.option)
    }
  }
}

/** Does the work with a transport that is connected; it is closed where that fails, is aborted or takes too long. */
async function withTransport<T>(
  goal: Pick<Goal, 'address' | 'tls' | 'keepAlive' | 'family' | 'connectTimeout'>,
  timeoutMs: number,
  signal: AbortSignal | undefined,
  work: (transport: Transport) => Promise<T>,
): Promise<T> {
  signal?.throwIfAborted()
  const where = nameOfAddress(goal.address)
  const { transport, connected } = Transport.connect(goal.address, {
    willUseTls: goal.tls !== undefined,
    keepAlive: goal.keepAlive,
    family: goal.family,
  })
  const timer = setTimeout(
    () => transport.destroy(new NbdTimeoutError(`${where}: no NBD export within ${goal.connectTimeout} ms`)),
    Math.max(timeoutMs, 0),
  )
  const abort = () => transport.destroy(new NbdConnectionError('aborted', { code: 'ECONNABORTED', cause: signal?.reason }))
  signal?.addEventListener('abort', abort, { once: true })
  try {
    await connected
    return await work(transport)
  } catch (error) {
    const known = error instanceof NbdError ? error : new NbdConnectionError(String(error), { cause: error })
    transport.destroy(known)
    signal?.throwIfAborted()
    throw error
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', abort)
  }
}

async function enter(goal: Goal, transport: Transport, without: Without, trying: Trying): Promise<Connected> {
  const negotiation = await Negotiation.begin(transport)
  if (!negotiation.isFixedNewstyle) {
    if (goal.tls) throw new NbdOptionError('STARTTLS', 'ERR_UNSUP', 'it is too old for any option')
    return { transport, session: await negotiation.exportName(goal.exportName) }
  }
  return orLeave(negotiation, async () => {
    if (goal.tls) await negotiation.startTls(goal.tls)
    await agreeOnReplies(negotiation, without, trying)
    if (goal.contexts.length > 0 && negotiation.mode !== 'simple') await agreeOnContexts(negotiation, goal)
    return { transport, session: await go(negotiation, goal.exportName, without, trying) }
  })
}

/** A server that refused an option still listens, and wants to be left in order. */
async function orLeave<T>(negotiation: Negotiation, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (error instanceof NbdOptionError) await negotiation.abort()
    throw error
  }
}

async function agreeOnReplies(negotiation: Negotiation, without: Without, trying: Trying) {
  for (const option of ['EXTENDED_HEADERS', 'STRUCTURED_REPLY'] as const) {
    if (without.has(option)) continue
    trying.option = option
    const answer = await orRefused(
      option === 'EXTENDED_HEADERS' ? negotiation.extendedHeaders() : negotiation.structuredReplies(),
    )
    trying.option = undefined
    if (!(answer instanceof NbdOptionError)) return
  }
}

async function agreeOnContexts(negotiation: Negotiation, { exportName, contexts }: Goal) {
  const names: string[] = []
  for (const context of contexts) {
    if (!isWildcard(context)) names.push(context)
    else {
      const query = context.replace(/\*$/, '')
      const found = await orRefused(negotiation.listContexts(exportName, [query]))
      if (found instanceof NbdOptionError) return // it knows no contexts
      names.push(...found)
    }
  }
  if (names.length > 0) await orRefused(negotiation.setContexts(exportName, [...new Set(names)]))
}

/** A namespace as a whole: "qemu:dirty-bitmap:*", or "base:". */
export const isWildcard = (context: string) => /(:|\*)$/.test(context)

async function go(negotiation: Negotiation, exportName: string, without: Without, trying: Trying) {
  if (!without.has('GO')) {
    // With extended headers there is no other way in.
    trying.option = negotiation.mode === 'extended' ? undefined : 'GO'
    try {
      return await negotiation.go(exportName)
    } catch (error) {
      if (!(error instanceof NbdOptionError && error.code === 'ERR_UNSUP') || negotiation.mode === 'extended') throw error
    }
    trying.option = undefined
  }
  return negotiation.exportName(exportName)
}

/** A server that lacks an option says so in one of these ways. */
const isUnsupported = (error: unknown): error is NbdOptionError =>
  error instanceof NbdOptionError && ['ERR_UNSUP', 'ERR_INVALID', 'ERR_POLICY', 'ERR_PLATFORM'].includes(error.code)

/** The refusal, where the server lacks it; anything else is thrown. */
async function orRefused<T>(step: Promise<T>): Promise<T | NbdOptionError> {
  try {
    return await step
  } catch (error) {
    if (isUnsupported(error)) return error
    throw error
  }
}
