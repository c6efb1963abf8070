// The nbd driver: an image is an export of another NBD server, as QEMU's driver of that name opens it.
//
// A connection that is lost is made anew. For `reconnect-delay` seconds requests wait for it and are then sent again, writes among them:
// nobody else writes to an export of ours while it is open. A flush that cannot know what became of writes before it fails.

import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient, NbdConnectionError, NbdError, NbdTimeoutError, formatNbdUri, type NbdUri } from 'nbd-client-ts'
import { Allocation, BASE_ALLOCATION, MAX_STRING } from 'nbd-client-ts/protocol'
import { z } from 'zod'
import {
  type Fault,
  InvalidParameter,
  IoError,
  isNameUnknown,
  NoSpace,
  NotSupported,
  ReadOnly,
  ShuttingDown,
  strerror,
} from '../base/errors.ts'
import type { Range } from '../base/ranges.ts'
import { OutOfMemory } from '../base/system-fault.ts'
import type { BlockDriver, BlockNode, Extent, OpenContext, WriteFlags, ZeroFlags } from '../block/driver.ts'
import { tlsOfObject } from './nbd-tls.ts'

/** What sun_path of a Linux socket address holds, with the NUL at its end. */
const MAX_PATH = 107

const server = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('unix'), path: z.string(), abstract: z.boolean().optional() }),
  z.strictObject({ type: z.literal('inet'), host: z.string(), port: z.string() }),
  z.strictObject({ type: z.literal('vsock'), cid: z.string(), port: z.string() }),
  z.strictObject({ type: z.literal('fd'), str: z.string() }),
])

const seconds = (name: string) =>
  z
    .int()
    .meta({ qapi: 'uint32' })
    .refine(value => value >= 0 && value < 2 ** 32, `Parameter '${name}' expects uint32_t`)

/** For so long a timer can be set, 24 days. */
const LONGEST_MS = 2 ** 31 - 1

const options = z.strictObject({
  server: server.describe('Where the server listens'),
  export: z.string().default('').describe('The name of the export'),
  'tls-creds': z.string().optional().describe('Id of an object with TLS credentials; then there is no connection without TLS'),
  'tls-hostname': z.string().optional().describe("Whose certificate the server must show; by default the host's"),
  'reconnect-delay': seconds('reconnect-delay').default(0).describe('For how many seconds requests wait for a lost connection'),
  'open-timeout': seconds('open-timeout').default(0).describe('For how many seconds connecting is tried; 0 for once'),
})

export type NbdOptions = z.infer<typeof options>

export const nbd: BlockDriver<NbdOptions> = {
  name: 'nbd',
  options,
  children: {},
  async open(options, context) {
    if (Buffer.byteLength(options.export) > MAX_STRING) throw new InvalidParameter('export name too long to send to server')
    const client = await connect(options, context)
    if (!client.readOnly || context.readOnly) return new NbdNode(client, filenameOf(options), context)
    await client.close()
    throw new ReadOnly('request on write denied without write permission')
  },
}

/** Between two attempts to open. */
const PAUSE_MS = 200

async function connect(options: NbdOptions, context: Pick<OpenContext, 'object'>): Promise<NbdClient> {
  const { server, 'open-timeout': openTimeout, 'reconnect-delay': reconnectDelay } = options
  const credentials = options['tls-creds']
  const tls =
    credentials === undefined ? undefined : tlsOfObject(credentials, context.object(credentials), options['tls-hostname'])
  const address = addressOf(server)
  const uri = formatNbdUri({ address, exportName: options.export, ...(tls && { tls }) })
  const deadline = performance.now() + openTimeout * 1000
  for (;;) {
    try {
      return await NbdClient.connect(uri, {
        contexts: [BASE_ALLOCATION],
        allowLocalFiles: true, // the object named them
        reconnect: { hold: Math.min(reconnectDelay * 1000, LONGEST_MS), replayWrites: true },
      })
    } catch (error) {
      const mayCome = error instanceof NbdConnectionError || error instanceof NbdTimeoutError
      if (!mayCome || performance.now() + PAUSE_MS >= deadline) throw openFault(address, error)
    }
    await sleep(PAUSE_MS)
  }
}

function addressOf(server: NbdOptions['server']): NbdUri['address'] {
  if (('path' in server && server.path === '') || ('host' in server && server.host === ''))
    throw new IoError("Failed to connect to '': it is said nowhere where the server listens")
  if (server.type === 'unix' && Buffer.byteLength(server.path) > MAX_PATH)
    throw new InvalidParameter(`UNIX socket path '${server.path}' is too long`)
  if (server.type === 'unix') return { path: server.abstract ? `\0${server.path}` : server.path }
  if (server.type === 'vsock')
    throw new NotSupported(
      "Node.js has no vsock sockets; 'socat UNIX-LISTEN:PATH,fork VSOCK-CONNECT:CID:PORT' makes a unix socket of it",
    )
  if (server.type === 'fd')
    throw new NotSupported('no connection can be handed over to this driver; name the address of the server')
  const port = Number(server.port)
  if (!/^\d+$/.test(server.port) || port < 1 || port > 65_535)
    throw new InvalidParameter(`Parameter 'server.port' expects a port number, and not '${server.port}'`)
  return { host: server.host, port }
}

const filenameOf = ({ server, export: exportName }: NbdOptions) => formatNbdUri({ address: addressOf(server), exportName })

/** QEMU's sentence where there is nobody, and the client's own where somebody answered. */
function openFault(address: NbdUri['address'], error: unknown) {
  if (!(error instanceof NbdError)) return error
  const where = 'path' in address ? address.path.replace('\0', '') : `${address.host}:${address.port}`
  const { cause } = error
  if (isNameUnknown(cause)) return new IoError(`address resolution failed for ${where}: ${strerror(cause)}`, { cause: error })
  const isSystems = error instanceof NbdConnectionError && cause instanceof Error && 'syscall' in cause
  return new IoError(`Failed to connect to '${where}': ${isSystems ? strerror(cause) : error.message}`, { cause: error })
}

const faults: Readonly<Record<string, (new (message: string, options: ErrorOptions) => Fault) | undefined>> = {
  EPERM: ReadOnly,
  EINVAL: InvalidParameter,
  ENOSPC: NoSpace,
  ENOTSUP: NotSupported,
  ENOMEM: OutOfMemory,
  ESHUTDOWN: ShuttingDown,
}

class NbdNode implements BlockNode {
  readonly #mapped: boolean

  constructor(
    private readonly client: NbdClient,
    readonly filename: string,
    private readonly context: Pick<OpenContext, 'unmap' | 'cache'>,
  ) {
    this.#mapped = client.contexts.includes(BASE_ALLOCATION)
  }

  get size() {
    return this.client.size
  }

  get alignment() {
    return this.client.blockSizes.minimum
  }

  get maxTransfer() {
    return this.client.blockSizes.maximum
  }

  async read(offset: number, into: Buffer) {
    await this.#named(this.client.read(offset, into))
  }

  async write(offset: number, data: Buffer, { fua = false }: WriteFlags = {}) {
    await this.#named(this.client.write(offset, data, { fua: fua && !this.context.cache.noFlush }))
  }

  async zero({ offset, length }: Range, { fua = false, unmap = false, fast = false }: ZeroFlags = {}) {
    await this.#named(this.client.zero(offset, length, { fua: fua && !this.context.cache.noFlush, noHole: !unmap, fast }))
  }

  async discard({ offset, length }: Range) {
    if (this.context.unmap && this.client.offers('SEND_TRIM')) await this.#named(this.client.trim(offset, length))
  }

  async flush() {
    if (!this.context.cache.noFlush) await this.#named(this.client.flush())
  }

  async *extents(range: Range): AsyncGenerator<Extent> {
    if (!this.#mapped) {
      yield { ...range, allocated: true, zero: false }
      return
    }
    try {
      for await (const { offset, length, status } of this.client.extents({ ...range, contexts: [BASE_ALLOCATION] })) {
        const bits = status[BASE_ALLOCATION]!
        yield { offset, length, allocated: !(bits & Allocation.HOLE), zero: (bits & Allocation.ZERO) !== 0 }
      }
    } catch (error) {
      throw this.#fault(error)
    }
  }

  async resize(): Promise<never> {
    throw new NotSupported(`${this.filename}: the size of an NBD export is its server's; resize it there and open it anew`)
  }

  async [Symbol.asyncDispose]() {
    await this.client.close()
  }

  async #named<T>(work: Promise<T>): Promise<T> {
    try {
      return await work
    } catch (error) {
      throw this.#fault(error)
    }
  }

  /** The client's sentence, under the class that says at every door what its code does. */
  #fault(error: unknown) {
    if (!(error instanceof NbdError)) return error
    const Class = faults[error.code] ?? IoError
    return new Class(`${this.filename}: ${error.message}`, { cause: error })
  }
}
