// How a node is told on the control socket: QMP's BlockDeviceInfo, ImageInfo and BlockDirtyInfo.

import { z } from 'zod'
import type { GraphNode } from '../block/graph-node.ts'
import { ciphers, hashes, ivs } from '../drivers/luks/algorithms.ts'
import { backingPath, shownName } from './node-filename.ts'
import { int64, uint32 } from './qapi-type.ts'

/** QMP's ImageInfoSpecific. */
const formatSpecific = z.discriminatedUnion('type', [
  z.strictObject({
    type: z.literal('qcow2'),
    data: z.strictObject({
      compat: z.string(),
      'data-file': z.string().optional(),
      'data-file-raw': z.boolean().optional(),
      'extended-l2': z.boolean().optional(),
      'lazy-refcounts': z.boolean().optional(),
      corrupt: z.boolean().optional(),
      'refcount-bits': int64,
      bitmaps: z
        .array(z.strictObject({ name: z.string(), granularity: uint32, flags: z.array(z.enum(['in-use', 'auto'])) }))
        .optional(),
      'compression-type': z.enum(['zlib', 'zstd']),
    }),
  }),
  z.strictObject({
    type: z.literal('luks'),
    data: z.strictObject({
      'cipher-alg': z.enum(['aes-128', 'aes-192', 'aes-256']),
      'cipher-mode': z.enum(ciphers),
      'ivgen-alg': z.enum(ivs),
      'ivgen-hash-alg': z.enum(hashes).optional(),
      'hash-alg': z.enum(hashes),
      'payload-offset': int64,
      'master-key-iters': int64,
      uuid: z.string(),
      slots: z.array(
        z.strictObject({ active: z.boolean(), iters: int64.optional(), stripes: int64.optional(), 'key-offset': int64 }),
      ),
    }),
  }),
])

export const snapshotInfo = z.strictObject({
  id: z.string(),
  name: z.string(),
  'vm-state-size': int64,
  'date-sec': int64,
  'date-nsec': int64,
  'vm-clock-sec': int64,
  'vm-clock-nsec': int64,
  icount: int64.optional(),
})

const imageMembers = z.strictObject({
  filename: z.string(),
  format: z.string(),
  'virtual-size': int64,
  'actual-size': int64.optional(),
  'dirty-flag': z.boolean().optional(),
  'cluster-size': int64.optional(),
  encrypted: z.boolean().optional(),
  compressed: z.boolean().optional(),
  'backing-filename': z.string().optional(),
  'full-backing-filename': z.string().optional(),
  'backing-filename-format': z.string().optional(),
  snapshots: z.array(snapshotInfo).optional(),
  'format-specific': formatSpecific.optional(),
})

type ImageInfo = z.input<typeof imageMembers> & { 'backing-image'?: ImageInfo | undefined }

const imageInfo: z.ZodType<ImageInfo> = z.lazy(() => withBackingImage) as z.ZodType as z.ZodType<ImageInfo>
const withBackingImage = imageMembers.extend({ 'backing-image': imageInfo.optional() })

const dirtyInfo = z.strictObject({
  name: z.string().optional(),
  count: int64,
  granularity: uint32,
  recording: z.boolean(),
  busy: z.boolean(),
  persistent: z.boolean(),
  inconsistent: z.boolean().optional(),
})

export const blockDeviceInfo = z.strictObject({
  file: z.string(),
  'node-name': z.string().optional(),
  ro: z.boolean(),
  drv: z.string(),
  backing_file: z.string().optional(),
  backing_file_depth: int64,
  active: z.boolean(),
  encrypted: z.boolean(),
  detect_zeroes: z.enum(['off', 'on', 'unmap']),
  bps: int64,
  bps_rd: int64,
  bps_wr: int64,
  iops: int64,
  iops_rd: int64,
  iops_wr: int64,
  image: imageInfo,
  cache: z.strictObject({ writeback: z.boolean(), direct: z.boolean(), 'no-flush': z.boolean() }),
  write_threshold: int64,
  'dirty-bitmaps': z.array(dirtyInfo).optional(),
})

/** A device has limits of its own in QEMU; here only throttle filters do. */
const UNLIMITED = { bps: 0, bps_rd: 0, bps_wr: 0, iops: 0, iops_rd: 0, iops_wr: 0 }

/** `flat`: without the images behind it. */
export async function describeNode(
  node: GraphNode,
  { flat = false }: { readonly flat?: boolean | undefined } = {},
): Promise<z.input<typeof blockDeviceInfo>> {
  const behind = node.children.get('backing')?.node
  const image = await describeImage(node, flat)
  const bitmaps = Array.from(node.bitmaps, bitmap => bitmap.info())
  return {
    file: await shownName(node),
    'node-name': node.name,
    ro: node.readOnly,
    drv: node.driver.name,
    backing_file: behind && (await shownName(behind)),
    backing_file_depth: flat ? 0 : depthOf(node),
    active: true,
    encrypted: image.encrypted === true,
    detect_zeroes: node.generic['detect-zeroes'],
    ...UNLIMITED,
    image,
    cache: { writeback: true, direct: node.generic.cache.direct, 'no-flush': node.generic.cache['no-flush'] },
    write_threshold: signed(node.writeThreshold),
    'dirty-bitmaps': bitmaps.length > 0 ? bitmaps : undefined,
  }
}

/** 64 bits as QEMU shows them; what is no exact number behind 2^63 is -1, which is how one asks for that. */
const signed = (bits: number) => (bits < 2 ** 63 ? bits : Math.min(bits - 2 ** 64, -1))

async function describeImage(node: GraphNode, flat: boolean): Promise<ImageInfo> {
  const behind = node.filteredOrBacking
  // All at once, as those that hang are waited for, each so long.
  const [info, filename, backingImage] = await Promise.all([
    node.info(),
    shownName(node),
    behind && !flat ? describeImage(behind, flat) : undefined,
  ])
  const { allocated, dirty, clusterSize, encrypted, compressed, backing, snapshots, formatSpecific } = info
  return {
    filename,
    format: node.driver.name,
    'virtual-size': node.size,
    'actual-size': allocated,
    'dirty-flag': dirty,
    'cluster-size': clusterSize,
    encrypted: encrypted || undefined,
    compressed: compressed || undefined,
    'backing-filename': backing?.filename,
    'full-backing-filename': backing && backingPath(node, backing),
    'backing-filename-format': backing?.format,
    snapshots: snapshots && [...snapshots],
    'format-specific': formatSpecific as ImageInfo['format-specific'],
    'backing-image': backingImage,
  }
}

const depthOf = (node: GraphNode): number => {
  const behind = node.filteredOrBacking
  return behind ? 1 + depthOf(behind) : 0
}
