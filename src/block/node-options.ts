// The options that every node has, whatever its driver (QMP's BlockdevOptions, qapi/block-core.json).

import { z } from 'zod'
import { InvalidParameter } from '../base/errors.ts'

/** QEMU's rule for identifiers (id_wellformed in util/id.c) and its limit for the names of nodes. */
const WELL_FORMED = /^[A-Za-z][A-Za-z0-9._-]*$/
export const MAX_NODE_NAME = 31

export const nodeName = z.string()

export const cacheOptions = z.strictObject({
  direct: z.boolean().default(false).describe('Go around the page cache'),
  'no-flush': z.boolean().default(false).describe('Ignore flushes: a crash may lose what was written'),
})

/** What the graph reads; all else are the driver's own options. */
export const genericOptions = z.object({
  driver: z.string(),
  'node-name': nodeName.optional(),
  discard: z
    .enum(['ignore', 'unmap'])
    .default('ignore')
    .describe('Whether discards, and zeroings that may leave holes, are passed on'),
  cache: cacheOptions.prefault({}),
  'read-only': z.boolean().default(false),
  'auto-read-only': z.boolean().default(false).describe('Open it read-only where it cannot be written'),
  'force-share': z.boolean().default(false),
  'detect-zeroes': z.enum(['off', 'on', 'unmap']).default('off').describe('Turn writes of zeroes into zeroings'),
})

export type GenericOptions = z.infer<typeof genericOptions>

export const genericNames: ReadonlySet<string> = new Set(Object.keys(genericOptions.shape))

/** As an identifier must be. */
export const isWellFormed = (name: string) => WELL_FORMED.test(name)

export function checkNodeName(name: string) {
  if (!isWellFormed(name)) throw new InvalidParameter(`Invalid node-name: '${name}'`)
  if (Buffer.byteLength(name) > MAX_NODE_NAME) throw new InvalidParameter('Node name too long')
}
