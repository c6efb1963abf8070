// Commands with the arguments that QEMU's have (its qapi/*.json) and nothing behind them: what is wrong with arguments is found before
// a command begins.

import { z } from 'zod'
import { command } from '../../src/control/command.ts'
import { int64, named, uint32, uint64 } from '../../src/control/qapi-type.ts'

const nothing = () => undefined

const jobId = { 'job-id': z.string().optional() }
const backup = z.strictObject({
  ...jobId,
  device: z.string(),
  sync: z.enum(['top', 'full', 'none', 'incremental', 'bitmap']),
  speed: int64.optional(),
  bitmap: z.string().optional(),
  compress: z.boolean().optional(),
  'x-perf': z.strictObject({ 'use-copy-range': z.boolean().optional(), 'max-workers': int64.optional() }).optional(),
  target: z.string(),
})
const bitmap = z.strictObject({ node: z.string(), name: z.string() })
const bitmapOrName = named('BlockDirtyBitmapOrStr', z.union([z.string(), bitmap]))
const bitmapAdd = z.strictObject({
  node: z.string(),
  name: z.string(),
  granularity: uint32.optional(),
  persistent: z.boolean().optional(),
  disabled: z.boolean().optional(),
})
const bitmapMerge = z.strictObject({ node: z.string(), target: z.string(), bitmaps: z.array(bitmapOrName) })

const action = <Type extends string, Data extends z.ZodType>(type: Type, data: Data) =>
  z.strictObject({ type: z.literal(type), data })

const cache = z.strictObject({ direct: z.boolean().optional(), 'no-flush': z.boolean().optional() })
const ofEveryNode = {
  'node-name': z.string().optional(),
  discard: z.enum(['ignore', 'unmap']).optional(),
  cache: cache.optional(),
  'read-only': z.boolean().optional(),
}
/** Of blockdev-add: enough drivers to have a child, one that may be null, and a number without a sign. */
export const blockdevOptions: z.ZodType = z.lazy(() =>
  z.discriminatedUnion('driver', [
    z.strictObject({
      driver: z.literal('file'),
      ...ofEveryNode,
      filename: z.string(),
      locking: z.enum(['on', 'off', 'auto']).optional(),
    }),
    z.strictObject({
      driver: z.literal('raw'),
      ...ofEveryNode,
      file: blockdevRef,
      offset: int64.optional(),
      size: int64.optional(),
    }),
    z.strictObject({ driver: z.literal('qcow2'), ...ofEveryNode, file: blockdevRef, backing: blockdevRefOrNull.optional() }),
    z.strictObject({
      driver: z.literal(['null-co', 'null-aio']),
      ...ofEveryNode,
      size: int64.optional(),
      'latency-ns': uint64.optional(),
    }),
  ]),
)
const blockdevRef = named('BlockdevRef', z.union([blockdevOptions, z.string()]))
const blockdevRefOrNull = named('BlockdevRefOrNull', z.union([blockdevOptions, z.string(), z.null()]))

export const qemuCommands = [
  command({ name: 'job-cancel', summary: 'Of one string.', arguments: z.strictObject({ id: z.string() }), run: nothing }),
  command({ name: 'blockdev-backup', summary: 'Of many kinds.', arguments: backup, run: nothing }),
  command({
    name: 'block-job-set-speed',
    summary: 'Of an integer.',
    arguments: z.strictObject({ device: z.string(), speed: int64 }),
    run: nothing,
  }),
  command({ name: 'block-dirty-bitmap-add', summary: 'Of an integer of 32 bits.', arguments: bitmapAdd, run: nothing }),
  command({ name: 'block-dirty-bitmap-merge', summary: 'Of alternates in a list.', arguments: bitmapMerge, run: nothing }),
  command({
    name: 'transaction',
    summary: 'Of a union in a list.',
    arguments: z.strictObject({
      actions: z.array(
        z.discriminatedUnion('type', [
          action('abort', z.strictObject({})),
          action('block-dirty-bitmap-add', bitmapAdd),
          action('block-dirty-bitmap-remove', bitmap),
          action('block-dirty-bitmap-merge', bitmapMerge),
          action('blockdev-backup', backup),
        ]),
      ),
      properties: z.strictObject({ 'completion-mode': z.enum(['individual', 'grouped']).optional() }).optional(),
    }),
    run: nothing,
  }),
  command({
    name: 'nbd-server-start',
    summary: 'Of a union with all its data in one member.',
    arguments: z.strictObject({
      addr: z.discriminatedUnion('type', [
        action('inet', z.strictObject({ host: z.string(), port: z.string(), numeric: z.boolean().optional() })),
        action('unix', z.strictObject({ path: z.string() })),
      ]),
      'max-connections': uint32.optional(),
    }),
    run: nothing,
  }),
  command({ name: 'blockdev-add', summary: 'Of a union that contains itself.', arguments: blockdevOptions, run: nothing }),
  command({
    name: 'blockdev-reopen',
    summary: 'Of the same in a list.',
    arguments: z.strictObject({ options: z.array(blockdevOptions) }),
    run: nothing,
  }),
]
