// Where the clusters of a disk stand in the file below, in memory that is shared with threads that read and write there by themselves.
//
// What is not in it is for the main thread. While anything is lent it only gains entries; before a cluster that is in it comes to mean anything else, all
// that is lent is called back (drivers/qcow2/loans.ts).

/** What another thread needs to know. */
export interface SharedClusterMapTerms {
  /** A word for each cluster: 0 where it is not known, or one more than its number in the file below. */
  readonly memory: SharedArrayBuffer
  /** Bytes, a power of two. */
  readonly clusterSize: number
}

export class SharedClusterMap {
  readonly #words: Uint32Array
  /** Clusters to a byte: exact, since a cluster is a power of two. */
  readonly #perByte: number

  constructor(readonly terms: SharedClusterMapTerms) {
    this.#words = new Uint32Array(terms.memory)
    this.#perByte = 1 / terms.clusterSize
  }

  /** Nothing known. Of its memory only what is touched is taken. */
  static make(clusters: number, clusterSize: number) {
    return new SharedClusterMap({ memory: new SharedArrayBuffer(4 * clusters), clusterSize })
  }

  /** Both are numbers of clusters, the second one of the file below and less than 2^32 - 1. */
  add(cluster: number, host: number) {
    Atomics.store(this.#words, cluster, host + 1)
  }

  /** Its number in the file below; undefined where it is not known. */
  hostOf(cluster: number): number | undefined {
    const word = Atomics.load(this.#words, cluster)
    return word === 0 ? undefined : word - 1
  }

  /** Nothing is lent. */
  forget(cluster: number) {
    Atomics.store(this.#words, cluster, 0)
  }

  /** Where the range, of at least one byte, begins in the file below; undefined where it does not stand there in one piece, as far as is known. */
  find(offset: number, length: number): number | undefined {
    const first = Math.floor(offset * this.#perByte)
    const last = Math.floor((offset + length - 1) * this.#perByte)
    const word = Atomics.load(this.#words, first)
    if (word === 0) return undefined
    for (let cluster = first + 1; cluster <= last; cluster++)
      if (Atomics.load(this.#words, cluster) !== word + cluster - first) return undefined
    const { clusterSize } = this.terms
    return (word - 1) * clusterSize + (offset - first * clusterSize)
  }
}
