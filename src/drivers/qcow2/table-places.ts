// Which host clusters hold tables: guest data must never be written there, whatever a damaged image says.
//
// The tables that are in no memory but the cache (L2 tables, refcount blocks) are known by their offsets, up to a number that no image
// of a sensible cluster size has; beyond it only the others are watched.

const MOST = 1 << 20

export class TablePlaces {
  readonly #clusters = new Set<number>()

  constructor(private readonly clusterSize: number) {}

  add(offset: number, length: number) {
    for (let cluster = offset / this.clusterSize; cluster * this.clusterSize < offset + length; cluster++) {
      if (this.#clusters.size >= MOST) return
      this.#clusters.add(cluster)
    }
  }

  clear() {
    this.#clusters.clear()
  }

  delete(offset: number, length: number) {
    for (let cluster = offset / this.clusterSize; cluster * this.clusterSize < offset + length; cluster++)
      this.#clusters.delete(cluster)
  }

  /** Whether any of the clusters that a range touches holds a table. */
  touches(offset: number, length: number) {
    const end = offset + length
    for (let cluster = Math.floor(offset / this.clusterSize); cluster * this.clusterSize < end; cluster++)
      if (this.#clusters.has(cluster)) return true
    return false
  }
}
