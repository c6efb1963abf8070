// The sizes that follow from an image's header.

import { Incompatible, SUBCLUSTERS } from './format.ts'
import { isSet, type Header } from './header.ts'

/** Tables are kept in memory by slices of this size, or of a cluster where that is smaller. */
const SLICE = 4096

export interface Geometry {
  readonly version: 2 | 3
  readonly clusterSize: number
  /** Clusters are allocated by the whole, or with extended L2 entries by 32 parts. */
  readonly extended: boolean
  readonly subclusterSize: number
  /** Bytes of an L2 entry. */
  readonly entrySize: 8 | 16
  readonly l2Entries: number
  /** Bytes of the disk that one L2 table maps. */
  readonly l2Span: number
  readonly sliceSize: number
  readonly slicesPerCluster: number
  readonly entriesPerSlice: number
  /** Bytes of the disk that one slice of an L2 table maps. */
  readonly sliceSpan: number
  readonly refcountBits: number
  readonly refcountMost: number
  /** Clusters that one refcount block counts. */
  readonly refcountsPerBlock: number
  readonly refcountsPerSlice: number
  /** Guest data stand in a file of their own, at their own offsets. */
  readonly externalData: boolean
}

export function geometryOf(header: Pick<Header, 'version' | 'clusterBits' | 'incompatible' | 'refcountOrder'>): Geometry {
  const clusterSize = 2 ** header.clusterBits
  const extended = isSet(header.incompatible, Incompatible.extendedL2)
  const entrySize = extended ? 16 : 8
  const l2Entries = clusterSize / entrySize
  const sliceSize = Math.min(clusterSize, SLICE)
  const refcountBits = 2 ** header.refcountOrder
  return {
    version: header.version,
    clusterSize,
    extended,
    subclusterSize: extended ? clusterSize / SUBCLUSTERS : clusterSize,
    entrySize,
    l2Entries,
    l2Span: l2Entries * clusterSize,
    sliceSize,
    slicesPerCluster: clusterSize / sliceSize,
    entriesPerSlice: sliceSize / entrySize,
    sliceSpan: (sliceSize / entrySize) * clusterSize,
    refcountBits,
    // Counts beyond 2^53 are no file's.
    refcountMost: refcountBits === 64 ? Number.MAX_SAFE_INTEGER : 2 ** refcountBits - 1,
    refcountsPerBlock: (clusterSize * 8) / refcountBits,
    refcountsPerSlice: (sliceSize * 8) / refcountBits,
    externalData: isSet(header.incompatible, Incompatible.dataFile),
  }
}
