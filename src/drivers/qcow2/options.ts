// The options of the qcow2 driver, in QMP's words (BlockdevOptionsQcow2).

import { z } from 'zod'
import { InvalidParameter } from '../../base/errors.ts'

const MiB = 1 << 20

const size = (least: number) => z.int().min(least)

const overlapTemplate = z.enum(['none', 'constant', 'cached', 'all'])
const overlapChecks = z
  .union([
    z.strictObject({
      template: overlapTemplate.optional(),
      ...Object.fromEntries(
        [
          'main-header',
          'active-l1',
          'active-l2',
          'refcount-table',
          'refcount-block',
          'snapshot-table',
          'inactive-l1',
          'inactive-l2',
          'bitmap-directory',
        ].map(table => [table, z.boolean().optional()]),
      ),
    }),
    overlapTemplate,
  ])
  .meta({ qapi: 'Qcow2OverlapChecks' })

export const options = z.strictObject({
  'cache-size': size(0).optional().describe('Bytes of tables to keep in memory in all; a quarter is for refcount blocks'),
  'l2-cache-size': size(0)
    .optional()
    .describe('Bytes of L2 tables to keep in memory; 32 MiB by default, enough for 256 GiB with clusters of 64 KiB'),
  'refcount-cache-size': size(0).optional().describe('Bytes of refcount blocks to keep in memory'),
  'l2-cache-entry-size': size(0).optional().describe('Accepted; L2 tables are kept by 4 KiB'),
  'cache-clean-interval': z.int().min(0).optional().describe('Accepted; what is not used makes room for what is'),
  'lazy-refcounts': z.boolean().optional().describe('Accepted; refcounts are always kept'),
  'pass-discard-request': z
    .boolean()
    .optional()
    .describe('Give the space of discarded clusters back to the file; as `discard` says by default'),
  'pass-discard-snapshot': z.boolean().optional().describe('Accepted; as pass-discard-request'),
  'pass-discard-other': z.boolean().optional().describe('Accepted; as pass-discard-request'),
  'overlap-check': overlapChecks.optional().describe('Accepted; guest data are never written over tables'),
})

export type Qcow2Options = z.infer<typeof options>

function refuse(wrong: boolean, message: string) {
  if (wrong) throw new InvalidParameter(message)
}

/** In QEMU's words (read_cache_sizes in block/qcow2.c). @throws InvalidParameter */
export function checkCaches(options: Qcow2Options, clusterSize: number) {
  const { 'cache-size': total, 'l2-cache-size': l2, 'refcount-cache-size': refcounts } = options
  const { 'l2-cache-entry-size': entry = clusterSize, 'cache-clean-interval': interval = 0 } = options
  if (total !== undefined) {
    refuse(
      l2 !== undefined && refcounts !== undefined,
      'cache-size, l2-cache-size and refcount-cache-size may not be set at the same time',
    )
    refuse(l2 !== undefined && l2 > total, 'l2-cache-size may not exceed cache-size')
    refuse(refcounts !== undefined && refcounts > total, 'refcount-cache-size may not exceed cache-size')
  }
  refuse(
    entry < 512 || entry > clusterSize || !Number.isInteger(Math.log2(entry)),
    `L2 cache entry size must be a power of two between 512 and the cluster size (${clusterSize})`,
  )
  refuse(interval >= 2 ** 32, 'Cache clean interval too big')
}

export function cacheBytes(options: Qcow2Options): { l2CacheBytes: number; refcountCacheBytes: number } {
  const total = options['cache-size']
  return {
    l2CacheBytes: options['l2-cache-size'] ?? (total === undefined ? 32 * MiB : Math.floor(total * 0.75)),
    refcountCacheBytes: Math.max(MiB, options['refcount-cache-size'] ?? (total === undefined ? 4 * MiB : Math.floor(total / 4))),
  }
}
