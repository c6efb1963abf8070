// What a backup job is asked for, and what of that makes no sense (qapi/block-core.json, BackupCommon; the texts and their order are those
// of QEMU's do_backup_common and backup_job_create).

import { InvalidParameter, NotFound, NotSupported } from '../base/errors.ts'
import { checkAllows } from '../bitmaps/check-allows.ts'
import type { DirtyBitmap } from '../bitmaps/dirty-bitmap.ts'
import { withoutFilters } from '../block/chain.ts'
import type { GraphNode } from '../block/graph-node.ts'
import type { ErrorPolicy } from './error-policy.ts'
import { checkNotRead } from './mirror-options.ts'

export type SyncMode = 'full' | 'top' | 'none' | 'incremental' | 'bitmap'
export type BitmapMode = 'on-success' | 'never' | 'always'

export interface BackupOptions {
  readonly jobId: string
  readonly source: GraphNode
  readonly target: GraphNode
  readonly sync: SyncMode
  readonly bitmap?: string | undefined
  readonly bitmapMode?: BitmapMode | undefined
  readonly compress?: boolean | undefined
  /** Bytes a second; 0: no limit. */
  readonly speed?: number | undefined
  readonly onSourceError?: ErrorPolicy | undefined
  readonly onTargetError?: ErrorPolicy | undefined
  readonly autoFinalize?: boolean | undefined
  readonly autoDismiss?: boolean | undefined
  readonly filterNodeName?: string | undefined
  /** What has been copied is discarded in the source as well. */
  readonly discardSource?: boolean | undefined
  /** How many pieces are copied at a time. */
  readonly workers?: number | undefined
  /** Bytes of a piece, at most; 0: no limit. */
  readonly maxChunk?: number | undefined
  /** Bytes that are kept at once when a guest overwrites some of them, at least; 0: as the target's clusters. */
  readonly minClusterSize?: number | undefined
}

/** QEMU's BACKUP_CLUSTER_SIZE_DEFAULT; and what copy-before-write can have in memory. */
const LEAST_CLUSTER = 64 << 10
const MOST_CLUSTER = 2 ** 31

/** So much is copied at once where an image is written as a whole. */
export const clusterSizeFor = ({ target, minClusterSize = 0 }: BackupOptions) =>
  Math.max(LEAST_CLUSTER, target.clusterSize ?? 0, minClusterSize)

/** The bitmap and how it is used, or nothing where there is none. `incremental` is `bitmap` with on-success. */
export interface BitmapUse {
  readonly bitmap: DirtyBitmap
  readonly mode: BitmapMode
}

/** `by` is the transaction that asks. @throws InvalidParameter, NotFound, Busy */
export function checkBackup(options: BackupOptions, by: object): BitmapUse | undefined {
  const { source, target } = options
  const use = bitmapOf(options, by)
  if (isMadeOf(source, withoutFilters(target)) || isMadeOf(target, withoutFilters(source)))
    throw new InvalidParameter('Source and target cannot be the same')
  if (options.compress && withoutFilters(target).driver.name !== 'qcow2')
    throw new NotSupported('Compression is not supported for this drive')
  source.checkNoJob()
  target.checkNoJob()
  const { workers, maxChunk = 0, minClusterSize = 0, speed = 0 } = options
  if (workers !== undefined && !(workers >= 1 && workers <= 2 ** 31 - 1))
    throw new InvalidParameter('max-workers must be between 1 and 2147483647')
  if (maxChunk < 0) throw new InvalidParameter('max-chunk must be zero (which means no limit) or positive')
  if (source.size !== target.size) throw new InvalidParameter('Source and target image have different sizes')
  checkNotRead(source, target)
  if (target.readOnly) throw new InvalidParameter(`Block node '${target.name}' is read-only`)
  if (minClusterSize > 0 && !(minClusterSize < MOST_CLUSTER && Number.isInteger(Math.log2(minClusterSize))))
    throw new InvalidParameter(`min-cluster-size needs to be a power of 2, below ${MOST_CLUSTER}`)
  const clusterSize = clusterSizeFor(options)
  if (maxChunk > 0 && maxChunk < clusterSize)
    throw new InvalidParameter(`Required max-chunk (${maxChunk}) is less than backup cluster size (${clusterSize})`)
  if (speed < 0) throw new InvalidParameter("Parameter 'speed' expects a non-negative value")
  return use
}

/** Whether what is written to one of them is written to the other: what is behind an image is another disk. */
function isMadeOf(node: GraphNode, other: GraphNode): boolean {
  if (node === other) return true
  return [...node.children].some(([name, edge]) => node.driver.children[name]!.role !== 'backing' && isMadeOf(edge.node, other))
}

function bitmapOf({ source, sync, bitmap: name, bitmapMode }: BackupOptions, by: object): BitmapUse | undefined {
  let mode = bitmapMode
  if (sync === 'bitmap' || sync === 'incremental') {
    if (name === undefined) throw new InvalidParameter(`must provide a valid bitmap name for '${sync}' sync mode`)
    if (sync === 'incremental') {
      if (mode !== undefined && mode !== 'on-success')
        throw new InvalidParameter("Bitmap sync mode must be 'on-success' when using sync mode 'incremental'")
      mode = 'on-success'
    }
  }
  if (name !== undefined) {
    const bitmap = source.bitmaps.find(name, by)
    if (!bitmap) throw new NotFound(`Bitmap '${name}' could not be found`)
    if (mode === undefined) throw new InvalidParameter('Bitmap sync mode must be given when providing a bitmap')
    checkAllows(bitmap, mode === 'never' ? 'read' : 'write', by)
    if (sync === 'none') throw new InvalidParameter("sync mode 'none' does not produce meaningful bitmap outputs")
    if (mode === 'never' && (sync === 'full' || sync === 'top'))
      throw new InvalidParameter(`Bitmap sync mode 'never' has no meaningful effect when combined with sync mode '${sync}'`)
    return { bitmap, mode }
  }
  if (mode !== undefined) throw new InvalidParameter('Cannot specify bitmap sync mode without a bitmap')
  return undefined
}
