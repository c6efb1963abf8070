// What a new qcow2 image is asked for in QMP's words (BlockdevCreateOptionsQcow2).

import { z } from 'zod'
import type { ImageCreation } from '../../block/driver.ts'
import { createImage } from './create.ts'

const options = z.strictObject({
  size: z.int().min(0).meta({ qapi: 'uint64' }).describe('Of the disk, in bytes'),
  version: z.enum(['v2', 'v3']).default('v3'),
  'cluster-size': z.int().min(0).meta({ qapi: 'uint64' }).default(65536),
  'refcount-bits': z.int().min(0).default(16),
  'backing-file': z.string().optional().describe('Its name, as it is to stand in the image; it need not be there'),
  'backing-fmt': z.enum(['file', 'host_device', 'nbd', 'qcow2', 'raw']).optional(),
  preallocation: z.enum(['off', 'metadata', 'falloc', 'full']).default('off'),
  'lazy-refcounts': z.boolean().default(false),
  'extended-l2': z.boolean().default(false),
  'data-file-raw': z.boolean().default(false),
  'compression-type': z.enum(['zlib', 'zstd']).default('zlib'),
})

export const qcow2Creation: ImageCreation<z.output<typeof options>> = {
  options,
  files: { file: {}, 'data-file': { optional: true } },
  async create(wanted, { file, 'data-file': dataFile }, filenames) {
    await createImage(
      file!,
      {
        size: wanted.size,
        version: wanted.version === 'v2' ? 2 : 3,
        clusterSize: wanted['cluster-size'],
        refcountBits: wanted['refcount-bits'],
        backingFile: wanted['backing-file'],
        backingFormat: wanted['backing-fmt'],
        preallocation: wanted.preallocation,
        lazyRefcounts: wanted['lazy-refcounts'],
        extendedL2: wanted['extended-l2'],
        compressionType: wanted['compression-type'],
        dataFile: dataFile && (filenames['data-file'] ?? ''),
        dataFileRaw: wanted['data-file-raw'],
      },
      dataFile,
    )
  },
}
