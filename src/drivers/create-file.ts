// Makes a new file, or empties the one that is there, for an image to be put into (QMP's BlockdevCreateOptionsFile).

import { open } from 'node:fs/promises'
import { z } from 'zod'
import { InvalidParameter } from '../base/errors.ts'
import { native } from '../base/native.ts'
import { systemFault } from '../base/system-fault.ts'
import type { ImageCreation } from '../block/driver.ts'
import { Permission } from '../block/permissions.ts'
import { FileNode } from './file.ts'

const options = z.strictObject({
  filename: z.string(),
  size: z.int().min(0).meta({ qapi: 'uint64' }).describe('Bytes'),
  preallocation: z
    .enum(['off', 'metadata', 'falloc', 'full'])
    .default('off')
    .describe('off: a hole; falloc: space is set aside; full: zeroes are written'),
  nocow: z.boolean().optional().describe('Accepted; a matter of btrfs alone'),
})

const FULL = Buffer.alloc(1 << 20)

export const fileCreation: ImageCreation<z.output<typeof options>> = {
  options,
  files: {},
  async create({ filename, size, preallocation }) {
    if (preallocation === 'metadata') throw new InvalidParameter('Unsupported preallocation mode: metadata')
    try {
      await using _made = await open(filename, 'a', 0o644)
    } catch (error) {
      throw systemFault(`Could not create '${filename}'`, error)
    }
    const context = { readOnly: false, unmap: true, cache: { direct: false, noFlush: false } }
    await using file = await FileNode.open(filename, context, native)
    const { write, resize, consistentRead } = Permission
    file.preparePermissions({ perm: write | resize, shared: consistentRead }).commit()
    await file.resize(0)
    await file.resize(size)
    if (preallocation === 'falloc' && size > 0) await file.zero({ offset: 0, length: size })
    if (preallocation === 'full')
      for (let at = 0; at < size; at += FULL.length) await file.write(at, FULL.subarray(0, Math.min(FULL.length, size - at)))
    await file.flush()
  },
}
