// Guest clusters whose L2 entries somebody is about to change. Who wants to change one that is taken waits, and then looks again.
//
// A request takes a run of clusters at once and waits for nobody else's while it holds some, so nobody waits in a circle.

export class ClusterLocks {
  readonly #taken = new Map<number, Promise<void>>()

  /** Clusters from `first` up to `end`, exclusive: what to wait for, or undefined when all are free. */
  busy(first: number, end: number): Promise<void> | undefined {
    if (this.#taken.size === 0) return undefined
    if (this.#taken.size < end - first) {
      for (const [cluster, released] of this.#taken) if (cluster >= first && cluster < end) return released
      return undefined
    }
    for (let cluster = first; cluster < end; cluster++) {
      const released = this.#taken.get(cluster)
      if (released) return released
    }
    return undefined
  }

  /** They must be free. */
  take(first: number, end: number): Disposable {
    const { promise, resolve } = Promise.withResolvers<void>()
    for (let cluster = first; cluster < end; cluster++) this.#taken.set(cluster, promise)
    return {
      [Symbol.dispose]: () => {
        for (let cluster = first; cluster < end; cluster++) this.#taken.delete(cluster)
        resolve()
      },
    }
  }
}
