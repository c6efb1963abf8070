// The compress filter: what is written through it is compressed, as a backup job's `compress` does.

import { z } from 'zod'
import { NotSupported } from '../base/errors.ts'
import type { BlockDriver, BlockIo, WriteFlags } from '../block/driver.ts'
import { oneFile, Passthrough } from './passthrough.ts'

export const compress: BlockDriver<Record<string, never>> = {
  name: 'compress',
  options: z.strictObject({}),
  children: oneFile,
  async open(_options, { children, below }) {
    const { driver, clusterSize } = below('file')
    if (!driver.compresses) throw new NotSupported(`Compression is not supported for underlying format: ${driver.name}`)
    return new Compress(children['file']!, clusterSize)
  },
}

class Compress extends Passthrough {
  /** Only whole clusters can be compressed: of others the rest is read first. */
  readonly alignment: number

  constructor(below: BlockIo, clusterSize: number | undefined) {
    super(below)
    this.alignment = clusterSize ?? 1
  }

  override write(offset: number, data: Buffer, flags?: WriteFlags) {
    return super.write(offset, data, { ...flags, compressed: true })
  }
}
