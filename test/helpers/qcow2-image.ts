// Makes qcow2 images for tests, with our own driver: thousands of them in the time that a program needs to start.

import type { BlockIo } from '../../src/block/driver.ts'
import { createImage, type CreateOptions } from '../../src/drivers/qcow2/create.ts'
import { Image } from '../../src/drivers/qcow2/image.ts'
import { Qcow2Node } from '../../src/drivers/qcow2/qcow2-node.ts'

export interface OpenOptions {
  readonly backing?: BlockIo | undefined
  readonly dataFile?: BlockIo | undefined
  readonly readOnly?: boolean
  readonly unmap?: boolean
  readonly l2CacheBytes?: number
}

/** A new image in `file`, opened; its size may be one that qemu-img would not take. The caller closes it. */
export async function newImage(file: BlockIo, options: CreateOptions, open: OpenOptions = {}): Promise<Qcow2Node> {
  const size = Math.ceil(options.size / 512) * 512
  await createImage(file, { ...options, size, ...(open.dataFile && { dataFile: 'data' }) }, open.dataFile)
  const node = await openQcow2(file, open)
  if (size !== options.size) await node.image.updateHeader({ size: options.size })
  return node
}

export async function openQcow2(file: BlockIo, open: OpenOptions = {}): Promise<Qcow2Node> {
  const { backing, dataFile, readOnly = false, unmap = true, l2CacheBytes = 1 << 20 } = open
  return new Qcow2Node(
    await Image.open({ file, backing, dataFile }, { readOnly, unmap, l2CacheBytes, refcountCacheBytes: 1 << 20, report: ignore }),
  )
}

const ignore = () => undefined
