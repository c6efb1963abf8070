// The NBD servers of the configuration, one for each place where clients connect; a reload adds and removes some, and leaves the rest alone,
// but that it reads their certificates and keys again, for connections to come.

import { Fault } from '../base/errors.ts'
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

export class Listeners implements AsyncDisposable {
  readonly #servers = new Map<string, { readonly server: NbdServer; readonly options: NbdServerOptions; readonly place: Place }>()

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
    const wanted = new Set(places.map(({ key }) => key))
    for (const [key, { server, place }] of this.#servers) {
      if (wanted.has(key)) continue
      this.#servers.delete(key)
      await server[Symbol.asyncDispose]()
      changes.push(`no longer listens at ${addressText(place.address)}`)
    }
    for (const place of places) {
      const served = this.#servers.get(place.key)
      try {
        if (served) {
          await served.options.tls?.credentials.reload()
          continue
        }
        await this.#add(place)
        changes.push(`listens at ${addressText(place.address)}`)
      } catch (error) {
        if (!(error instanceof Fault)) throw error
        problems.push(error.message)
      }
    }
    return { changes, problems }
  }

  /** Where they listen, in the order of the configuration when it was read first. */
  get addresses() {
    return [...this.#servers.values()].map(({ server }) => server.address)
  }

  /** Of all clients of all places. */
  get connections() {
    return [...this.#servers.values()].reduce((sum, { server }) => sum + server.connections, 0)
  }

  async #add(place: Place) {
    const options = await place.options()
    const fd = place.inherited?.()
    const server = await NbdServer.listen(fd === undefined ? place.address : { fd }, options)
    this.#servers.set(place.key, { server, options, place })
  }

  async [Symbol.asyncDispose]() {
    for (const { server } of [...this.#servers.values()].toReversed()) await server[Symbol.asyncDispose]()
    this.#servers.clear()
  }
}
