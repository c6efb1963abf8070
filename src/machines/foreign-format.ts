// What an image looks like by its first bytes, when that is not a plain disk.

import type { BlockIo } from '../block/driver.ts'

/** Where each format has its magic number: QEMU's block/*.c, *_probe. */
const magics: readonly { readonly name: string; readonly at: number; readonly bytes: Buffer }[] = [
  { name: 'a qcow or qcow2 image', at: 0, bytes: Buffer.from('QFI\xfb', 'latin1') },
  { name: 'a QED image', at: 0, bytes: Buffer.from('QED\0', 'latin1') },
  { name: 'a VMDK image', at: 0, bytes: Buffer.from('KDMV', 'latin1') },
  { name: 'a VMDK descriptor', at: 0, bytes: Buffer.from('# Disk DescriptorFile', 'latin1') },
  { name: 'a VHDX image', at: 0, bytes: Buffer.from('vhdxfile', 'latin1') },
  { name: 'a VHD image', at: 0, bytes: Buffer.from('conectix', 'latin1') },
  { name: 'a VDI image', at: 64, bytes: Buffer.from([0x7f, 0x10, 0xda, 0xbe]) },
]

const HEAD_BYTES = 512

/** Undefined when it looks like none of them. */
export async function foreignFormatOf(disk: Pick<BlockIo, 'size' | 'read'>): Promise<string | undefined> {
  const head = Buffer.alloc(Math.min(HEAD_BYTES, disk.size))
  if (head.length === 0) return undefined
  await disk.read(0, head)
  return magics.find(({ at, bytes }) => head.subarray(at, at + bytes.length).equals(bytes))?.name
}
