// What formats tell the nodes below them that they are about to do, by QEMU's names for it (BlkdebugEvent), so that a test can fail
// just that (filters/blkdebug.ts).

export const debugEvents = [
  'read_aio',
  'read_backing_aio',
  'read_compressed',
  'write_aio',
  'write_compressed',
  'l2_load',
  'l2_update',
  'l1_update',
  'refblock_load',
  'refblock_update',
  'reftable_update',
] as const

export type DebugEvent = (typeof debugEvents)[number]
