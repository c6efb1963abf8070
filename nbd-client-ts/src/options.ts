// What a client may be told, and what it does where it is not told.

import { NbdUriError, NbdUsageError } from './errors.ts'
import type { BlockSizes } from './session.ts'
import { whole } from './ranges.ts'
import { connectionOptions, tlsOfUri, type TlsOptions } from './tls.ts'
import { checkAddress, parseNbdUri, type NbdAddress, type NbdDial } from './uri.ts'
import type { Goal } from './connect.ts'
import type { PoolOptions, ReconnectOptions } from './pool.ts'

export interface ServerOptions {
  /** TLS is then a must. Over what the URI says. */
  readonly tls?: TlsOptions
  /** `'never'`: as an old client would. Default `'auto'`. */
  readonly structuredReplies?: 'auto' | 'never'
  readonly extendedHeaders?: 'auto' | 'never'
  /** For connecting, TLS and negotiation together, in ms. Default 10,000. */
  readonly connectTimeout?: number
  /** TCP's keep-alive, in ms of silence. Default 30,000; 0 for none. */
  readonly keepAlive?: number
  /** 4 or 6: only addresses of this kind. Default: whichever of the host's answers first. */
  readonly family?: 4 | 6
  /** The URI may name files of this machine (tls-certificates, tls-psk-file). Default false. */
  readonly allowLocalFiles?: boolean
  /** Gives up connecting. */
  readonly signal?: AbortSignal
}

export interface ConnectOptions extends ServerOptions {
  /** Default: the URI's, or ''. */
  readonly exportName?: string
  /** Metadata contexts. "qemu:dirty-bitmap:*" means all that there are. What the server lacks is left out of `client.contexts`. */
  readonly contexts?: readonly string[]
  /** How many connections, where the server allows more than one. Default 1. */
  readonly connections?: number
  /** Requests under way on each connection; more wait. Default 64. */
  readonly maxInFlight?: number
  /** Bytes of reads and writes under way on each connection; more wait. Default 64 MiB. */
  readonly maxInFlightBytes?: number
  /** How long the server may leave a request unanswered whose turn it is, in ms. Then the connection is closed. Default 60,000; 0 for ever. */
  readonly requestTimeout?: number
  /** Ask for a block after so many ms without any request, or twice as many at most, so that a server that hangs or has gone is noticed
   * (by `requestTimeout`) before it is needed, and one that closes idle clients does not. Default 0: never. */
  readonly ping?: number
  /** Make a lost connection anew. Default: no, all that waited on it fails. */
  readonly reconnect?: ReconnectOptions | undefined
  /** What to assume where the server does not say. Default: 512 bytes, 4 KiB and 32 MiB, as the protocol advises. */
  readonly assumeBlockSizes?: Partial<BlockSizes>
}

/** A URI, what one says in parts, or a way of your own. */
export type NbdTarget = string | NbdAddress | NbdDial

export async function goalOf(target: NbdTarget, options: ConnectOptions): Promise<Goal> {
  const uri = typeof target === 'string' ? parseNbdUri(target) : { address: target, exportName: '', tls: undefined }
  checkAddress(uri.address)
  const fromUri = uri.tls ? await tlsOfUri(uri.tls, options.allowLocalFiles ?? false) : undefined
  const tls = fromUri || options.tls ? { ...fromUri, ...options.tls } : undefined
  if (typeof target === 'string' && !uri.tls && options.tls)
    throw new NbdUriError('TLS is asked for, and the URI says there is none; write nbds:// or nbds+unix://')
  return {
    address: uri.address,
    tls: tls && connectionOptions(tls, uri.address),
    exportName: options.exportName ?? uri.exportName,
    contexts: options.contexts ?? [],
    structuredReplies: options.structuredReplies ?? 'auto',
    extendedHeaders: options.extendedHeaders ?? 'auto',
    connectTimeout: ms('connectTimeout', options.connectTimeout ?? 10_000, 1),
    keepAlive: ms('keepAlive', options.keepAlive ?? 30_000, 0),
    family: familyOf(options.family),
  }
}

export const poolOptionsOf = (options: ConnectOptions): PoolOptions => ({
  connections: whole('connections', options.connections ?? 1, 1),
  maxInFlight: whole('maxInFlight', options.maxInFlight ?? 64, 1),
  maxInFlightBytes: whole('maxInFlightBytes', options.maxInFlightBytes ?? 64 << 20, 1),
  requestTimeout: ms('requestTimeout', options.requestTimeout ?? 60_000, 0),
  ping: ms('ping', options.ping ?? 0, 0),
  reconnect: options.reconnect && reconnectOptionsOf(options.reconnect),
})

const reconnectOptionsOf = ({ hold = 30_000, pause = 100, longestPause = 10_000, replayWrites = false }: ReconnectOptions) => ({
  hold: ms('reconnect.hold', hold, 0),
  pause: ms('reconnect.pause', pause, 1),
  longestPause: ms('reconnect.longestPause', longestPause, 1),
  replayWrites,
})

function familyOf(family: number | undefined): 4 | 6 | undefined {
  if (family === undefined || family === 4 || family === 6) return family
  throw new NbdUsageError(`family is ${family}, and must be 4 or 6`)
}

/** What a timer takes, in ms; to what is more it means 1. */
const LONGEST_MS = 2 ** 31 - 1

function ms(name: string, value: number, least: number) {
  if (value > LONGEST_MS) throw new NbdUsageError(`${name} is ${value}, and must be at most ${LONGEST_MS} ms (24 days)`)
  return whole(name, value, least)
}
