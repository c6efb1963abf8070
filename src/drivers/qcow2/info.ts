// What `query-named-block-nodes` and `qemu-img info` tell of a qcow2 image (QMP's ImageInfoSpecificQCow2).

import { listBitmaps, type StoredBitmap } from './bitmaps.ts'
import type { SnapshotInfo } from '../../block/node-info.ts'
import { Autoclear, Compatible, CompressionType, Incompatible } from './format.ts'
import { isSet } from './header.ts'
import type { Image } from './image.ts'
import type { SnapshotEntry } from './snapshot-table.ts'
import { listSnapshots } from './snapshots.ts'

export interface Qcow2Info {
  readonly compat: '0.10' | '1.1'
  readonly 'compression-type': 'zlib' | 'zstd'
  readonly 'refcount-bits': number
  readonly 'lazy-refcounts'?: boolean
  readonly corrupt?: boolean
  readonly 'extended-l2'?: boolean
  readonly 'data-file'?: string
  readonly 'data-file-raw'?: boolean
  readonly bitmaps?: { readonly name: string; readonly granularity: number; readonly flags: readonly ('in-use' | 'auto')[] }[]
}

/** What of it is to be read from the image. */
export async function listed(image: Image) {
  const [{ bitmaps }, snapshots] = await Promise.all([listBitmaps(image), snapshotInfo(image)])
  return { bitmaps, snapshots }
}

export function qcow2Info(image: Image, bitmaps: readonly StoredBitmap[] = []): Qcow2Info {
  const { header, geometry } = image
  const common = {
    compat: header.version === 2 ? ('0.10' as const) : ('1.1' as const),
    'compression-type': header.compressionType === CompressionType.zstd ? ('zstd' as const) : ('zlib' as const),
    'refcount-bits': geometry.refcountBits,
  }
  if (header.version === 2) return common
  return {
    ...common,
    'lazy-refcounts': isSet(header.compatible, Compatible.lazyRefcounts),
    corrupt: isSet(header.incompatible, Incompatible.corrupt),
    'extended-l2': geometry.extended,
    ...(header.dataFile !== undefined && { 'data-file': header.dataFile }),
    ...(geometry.externalData && { 'data-file-raw': isSet(header.autoclear, Autoclear.dataFileRaw) }),
    ...(bitmaps.length > 0 && {
      bitmaps: bitmaps.map(({ name, granularityBits, inUse, enabled }) => ({
        name,
        granularity: 2 ** granularityBits,
        flags: [...(inUse ? ['in-use' as const] : []), ...(enabled ? ['auto' as const] : [])],
      })),
    }),
  }
}

const SECOND = 1_000_000_000n

/** Undefined where there are none. */
export async function snapshotInfo(image: Image): Promise<readonly SnapshotInfo[] | undefined> {
  if (image.header.snapshotCount === 0) return undefined
  const snapshots = await listSnapshots(image)
  return snapshots.map(describeSnapshot)
}

export const describeSnapshot = (snapshot: SnapshotEntry): SnapshotInfo => ({
  id: snapshot.id,
  name: snapshot.name,
  'vm-state-size': snapshot.vmStateSize,
  'date-sec': snapshot.dateSeconds,
  'date-nsec': snapshot.dateNanoseconds,
  'vm-clock-sec': Number(snapshot.vmClockNanoseconds / SECOND),
  'vm-clock-nsec': Number(snapshot.vmClockNanoseconds % SECOND),
  ...icountOf(snapshot.extra),
})

/** -1 stands for none. */
function icountOf(extra: Buffer) {
  const icount = extra.length >= 24 ? extra.readBigInt64BE(16) : -1n
  return icount === -1n ? {} : { icount: Number(icount) }
}
