// The conformance suite over the qcow2 driver, in its several configurations.

import t from 'tap'
import type { BlockNode } from '../../../src/block/driver.ts'
import type { CreateOptions } from '../../../src/drivers/qcow2/create.ts'
import { blockNodeSuite } from '../../helpers/block-node-suite.ts'
import { fileNode } from '../../helpers/open-context.ts'
import { MemoryNode } from '../../helpers/memory-node.ts'
import { newImage, openQcow2, type OpenOptions } from '../../helpers/qcow2-image.ts'

interface Configuration {
  readonly create?: Partial<CreateOptions>
  /** Whether the content is in a backing file, as long as the disk, or shorter and completed by the image. */
  readonly backing?: 'whole' | 'half'
  readonly externalData?: boolean
  readonly unmap?: boolean
  /** So few bytes that tables are thrown out all the time. */
  readonly l2CacheBytes?: number
  readonly onDisk?: boolean
}

const configurations: Record<string, Configuration> = {
  qcow2: { onDisk: true },
  'qcow2 of version 2': { create: { version: 2 } },
  'qcow2 with clusters of 512 bytes and a small cache': { create: { clusterSize: 512 }, l2CacheBytes: 0 },
  'qcow2 with clusters of 2 MiB': { create: { clusterSize: 2 << 20 } },
  'qcow2 with refcounts of 1 bit': { create: { refcountBits: 1, clusterSize: 4096 } },
  'qcow2 with refcounts of 64 bits': { create: { refcountBits: 64, clusterSize: 1024 } },
  'qcow2 over a backing file': { create: { clusterSize: 4096 }, backing: 'whole' },
  'qcow2 over a shorter backing file': { backing: 'half' },
  'qcow2 of version 2 over a backing file': { create: { version: 2 }, backing: 'whole' },
  'qcow2 with subclusters': { create: { extendedL2: true } },
  'qcow2 with subclusters over a backing file': { create: { extendedL2: true, clusterSize: 16384 }, backing: 'half' },
  'qcow2 with an external data file': { create: { clusterSize: 4096 }, externalData: true },
  'qcow2 with a raw external data file': { create: { dataFileRaw: true }, externalData: true },
  'qcow2 with subclusters and an external data file': { create: { extendedL2: true }, externalData: true },
  'qcow2 with preallocated tables': { create: { preallocation: 'metadata' }, unmap: false },
  'qcow2 preallocated in full': { create: { preallocation: 'full', clusterSize: 4096 } },
}

for (const [name, { create = {}, backing, externalData, unmap = true, l2CacheBytes, onDisk }] of Object.entries(configurations)) {
  blockNodeSuite(
    t,
    name,
    async (content, stack): Promise<BlockNode> => {
      const file = onDisk ? await fileNode(Buffer.alloc(0), stack) : new MemoryNode(Buffer.alloc(0))
      const dataFile = externalData ? new MemoryNode(Buffer.alloc(0)) : undefined
      const held = backing === 'whole' ? content.length : backing === 'half' ? Math.floor(content.length / 2) : 0
      const open: OpenOptions = {
        unmap,
        dataFile,
        ...(backing && { backing: new MemoryNode(Buffer.from(content.subarray(0, held))) }),
        ...(l2CacheBytes !== undefined && { l2CacheBytes }),
      }
      const named = backing && { backingFile: 'backing', backingFormat: 'raw' }
      {
        await using node = await newImage(file, { size: content.length, ...create, ...named }, open)
        const rest = content.subarray(held)
        if (rest.length > 0) await node.write(held, rest)
      }
      return openQcow2(file, open)
    },
    { runs: 15 },
  )
}
