// The compressed clusters that were read last, decompressed: a guest that reads on 4 KiB at a time would have each decompressed many times.

import { alignDown } from '../../base/ranges.ts'
import { CorruptImage } from './corrupt-image.ts'
import { decompress } from './compression.ts'
import type { HostFile } from './host-file.ts'

const BYTES = 4 << 20

export class DecompressedCache {
  /** By where their compressed bytes begin. */
  readonly #clusters = new Map<number, Promise<Buffer>>()
  readonly #most: number

  constructor(
    private readonly file: HostFile,
    private readonly clusterSize: number,
    private readonly type: number,
  ) {
    this.#most = Math.max(2, Math.floor(BYTES / clusterSize))
  }

  read(host: number, length: number): Promise<Buffer> {
    const known = this.#clusters.get(host)
    this.#clusters.delete(host)
    const cluster = known ?? this.#decompress(host, length)
    this.#clusters.set(host, cluster) // last in the order
    if (this.#clusters.size > this.#most) {
      for (const [oldest] of this.#clusters) {
        this.#clusters.delete(oldest)
        break
      }
    }
    return cluster
  }

  /** The host clusters are given back, and something else may come there. */
  drop(offset: number, length: number) {
    for (const host of this.#clusters.keys()) {
      const first = alignDown(host, this.clusterSize)
      if (first < offset + length && first + 2 * this.clusterSize > offset) this.#clusters.delete(host)
    }
  }

  async #decompress(host: number, length: number) {
    try {
      if (host >= this.file.size) throw new CorruptImage('a compressed cluster stands behind the end of the file')
      const compressed = Buffer.allocUnsafe(Math.min(length, this.file.size - host))
      await this.file.read(host, compressed)
      return await decompress(compressed, this.type, this.clusterSize)
    } catch (error) {
      this.#clusters.delete(host)
      throw error
    }
  }
}
