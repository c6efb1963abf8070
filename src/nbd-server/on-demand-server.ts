// The NBD server that a client of the control socket starts and stops (QMP's nbd-server-start), beside those of the configuration.
//
// It has exports of its own: what is added while it runs is to be found there and nowhere else, and goes with it. So whoever starts one
// for a purpose shows nobody more than was asked for, and a program that was made for qemu-storage-daemon finds there what it put there.
// While none was started, what is added appears on the servers of the configuration, where there are any.

import { Busy, InvalidParameter } from '../base/errors.ts'
import { patiently } from '../base/patience.ts'
import { Exports } from './exports.ts'
import type { ListenAddress } from './listening.ts'
import type { NodeExport, NodeExports } from './node-exports.ts'
import { NbdServer, type NbdServerOptions } from './server.ts'

/** How long clients' requests may take to end when the server is stopped. */
const PATIENCE_MS = 10_000

export class OnDemandServer implements AsyncDisposable {
  #running: { readonly server: NbdServer; readonly exports: Exports } | undefined

  constructor(
    /** Of the servers of the configuration; undefined where there are none. */
    private readonly configured: Exports | undefined,
    private readonly nodeExports: NodeExports,
    private readonly shared: Pick<NbdServerOptions, 'log' | 'memory'>,
  ) {}

  /** Where an export goes that is added now. @throws InvalidParameter when nobody would find it */
  get exports(): Exports {
    const exports = this.#running?.exports ?? this.configured
    if (!exports) throw new InvalidParameter('NBD server not running')
    return exports
  }

  get address() {
    return this.#running?.server.address
  }

  /** @throws InvalidParameter */
  checkStopped() {
    if (this.#running) throw new InvalidParameter('NBD server already running')
  }

  async start(address: ListenAddress, options: Pick<NbdServerOptions, 'maxConnections' | 'handshakeMs' | 'tls'>) {
    this.checkStopped()
    const exports = new Exports()
    this.#running = { exports, server: await NbdServer.listen(address, { ...this.shared, ...options, exports }) }
  }

  /** Its exports go with it, and its clients are cut off. @throws Busy when requests of theirs do not end; the exports go when they do */
  async stop() {
    const running = this.#running
    if (!running) throw new InvalidParameter('NBD server not running')
    this.#running = undefined
    const own = [...this.nodeExports].filter(one => one.isOf(running.exports)).toReversed()
    const ended = this.#removeAll(own)
    await using _server = running.server
    await patiently(PATIENCE_MS, ended, () => {
      const names = own.filter(one => one.isShuttingDown).map(({ id }) => `'${id}'`)
      return new Busy(`the server has stopped, but requests on export ${names.join(', ')} do not end; look at the disk below`)
    })
  }

  async [Symbol.asyncDispose]() {
    if (this.#running) await this.stop()
  }

  /** One after the other, so that what is told of it is in their order. */
  async #removeAll(exports: readonly NodeExport[]) {
    const idle = exports.map(one => (one.isShuttingDown ? undefined : one.shutDown('hard')))
    for (const [index, one] of exports.entries()) {
      if (!idle[index]) continue
      await idle[index]
      await one.release()
    }
  }
}
