// The NBD servers of the configuration, one for each place where clients connect; a reload adds and removes some, and leaves the rest alone,
// but that it reads their certificates and keys again, for connections to come. A place whose terms alone differ goes on listening: a
// socket that systemd holds is to be had once.

import { chmod } from 'node:fs/promises'
import { Fault } from '../base/errors.ts'
import { systemFault } from '../base/system-fault.ts'
import { addressText, type ListenAddress } from './listening.ts'
import { NbdServer, type NbdServerOptions } from './server.ts'

/** A place by the configuration, and what it means for a server. */
export interface Place {
  /** The same for the same place with the same terms. */
  readonly key: string
  readonly address: ListenAddress
  /** Takes the socket that whoever started us holds there, where one does. */
  inherited?(): number | undefined
  /** Reads what there is to read of it. @throws Fault */
  options(): Promise<NbdServerOptions>
}

interface Served {
  readonly server: NbdServer
  readonly options: NbdServerOptions
  readonly place: Place
  /** Its socket is another's, and so is who may open it. */
  readonly isInherited: boolean
}

export class Listeners implements AsyncDisposable {
  /** By address. */
  readonly #served = new Map<string, Served>()

  /** At all places, or at none. */
  static async open(places: readonly Place[]) {
    await using undo = new AsyncDisposableStack()
    const listeners = undo.use(new Listeners())
    for (const place of places) await listeners.#add(place)
    undo.move()
    return listeners
  }

  /** What has changed, and what could not be, in sentences. Clients of a place that is no more are closed once their requests are answered. */
  async reconcile(places: readonly Place[]) {
    const changes: string[] = []
    const problems: string[] = []
    const wanted = new Set(places.map(({ address }) => addressText(address)))
    for (const [address, { server }] of this.#served) {
      if (wanted.has(address)) continue
      this.#served.delete(address)
      await server[Symbol.asyncDispose]()
      changes.push(`no longer listens at ${address}`)
    }
    for (const place of places) {
      const address = addressText(place.address)
      const served = this.#served.get(address)
      try {
        if (!served) {
          await this.#add(place)
          changes.push(`listens at ${address}`)
        } else if (served.place.key === place.key) await served.options.tls?.credentials.reload()
        else {
          await this.#change(served, place)
          changes.push(`changed who may do what at ${address}; clients there connect again`)
        }
      } catch (error) {
        if (!(error instanceof Fault)) throw error
        problems.push(error.message)
      }
    }
    return { changes, problems }
  }

  /** Where they listen, in the order of the configuration when it was read first. */
  get addresses() {
    return [...this.#served.values()].map(({ server }) => server.address)
  }

  /** Of all clients of all places. */
  get connections() {
    return [...this.#served.values()].reduce((sum, { server }) => sum + server.connections, 0)
  }

  async #add(place: Place) {
    const options = await place.options()
    const fd = place.inherited?.()
    const server = await NbdServer.listen(fd === undefined ? place.address : { fd }, options)
    this.#served.set(addressText(place.address), { server, options, place, isInherited: fd !== undefined })
  }

  async #change(served: Served, place: Place) {
    const options = await place.options()
    const { address } = place
    if ('unix' in address && !address.unix.startsWith('\0') && address.mode !== undefined && !served.isInherited) {
      try {
        await chmod(address.unix, address.mode)
      } catch (error) {
        throw systemFault(`Could not change who may open ${address.unix}`, error)
      }
    }
    served.server.change(options)
    this.#served.set(addressText(address), { ...served, options, place })
  }

  async [Symbol.asyncDispose]() {
    for (const { server } of [...this.#served.values()].toReversed()) await server[Symbol.asyncDispose]()
    this.#served.clear()
  }
}
