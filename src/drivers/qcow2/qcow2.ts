// The qcow2 driver: QEMU's image format (docs/interop/qcow2), read and written.
//
// The image is one file of clusters. A cluster is: the header; a piece of the L1 table, the refcount table, the snapshot table or a
// bitmap's; an L2 table; a refcount block; guest data, plain or compressed. Each has a reference count, 0 for free.
//
//     guest offset → L1 entry → L2 table → L2 entry → cluster of guest data        mapping.ts, l2-tables.ts
//     host cluster → refcount table entry → refcount block → count                 refcounts.ts
//
// In memory are the header and both tables of the first level (image.ts), and of those of the second as many slices of 4 KiB as the
// caches may hold (metadata-cache.ts). Tables are changed in memory; writeback.ts brings the changes into the file.
//
// What must hold, in the file and at every moment, whatever write was the last to reach it:
// 1. No cluster has a count lower than the number of its references. (Higher is a leak: space lost until a repair, and nothing else.)
//    So counts go up before a reference is written, and down when the last writeback has taken the reference out (release.ts).
// 2. A reference is written when what it refers to is durable: refcount blocks before the refcount table, everything before an L2 entry,
//    L2 tables before the L1 table, new tables before the header.
// 3. What replaces the header fits in its first sector, or is not referred to before (write-header.ts).
//
// And in memory:
// 4. Whoever changes slices, tables or counts does so in one turn of the event loop, so that the copy a writeback takes between two
//    turns is whole.
// 5. An L2 entry points to a cluster when its data are written (writer.ts), so a writeback never shows what was never written.
// 6. Guest clusters whose entries are about to change are locked (cluster-locks.ts), and only those; reading takes no lock. What a
//    reader, or a write in place, has looked up is not given to anybody else before it has ended (requests.ts).
// 7. A table is never taken for free, nor guest data written over one, whatever a damaged image says (table-places.ts): then the image
//    is marked corrupt and takes no more writes.

import { InvalidParameter } from '../../base/errors.ts'
import type { BlockDriver, BlockIo, ChildRule, NodeOptions } from '../../block/driver.ts'
import { ALL, Permission } from '../../block/permissions.ts'
import { refuseLoop } from './backing-loop.ts'
import { nodeOptionsOf, pathOf } from './backing-name.ts'
import { qcow2Creation } from './creation.ts'
import { Incompatible } from './format.ts'
import { isSet, type Header } from './header.ts'
import { Image, readHeader } from './image.ts'
import { cacheBytes, checkCaches, options, type Qcow2Options } from './options.ts'
import { Qcow2Node } from './qcow2-node.ts'

/** It holds our tables: whoever else writes there destroys them. */
const ownFile: ChildRule['permissions'] = (_parents, readOnly) => ({
  perm: Permission.consistentRead | (readOnly ? 0 : Permission.write | Permission.resize),
  shared: ALL & ~(Permission.write | Permission.resize),
})

/** As QEMU's bdrv_default_perms_for_cow: who may write the overlay's data may change what shines through. */
const backingFile: ChildRule['permissions'] = ({ perm, shared }) => ({
  perm: perm & Permission.consistentRead,
  shared:
    Permission.consistentRead |
    Permission.writeUnchanged |
    (shared & Permission.write ? Permission.write | Permission.resize : 0),
})

export const qcow2: BlockDriver<Qcow2Options> = {
  name: 'qcow2',
  creation: qcow2Creation,
  options,
  children: {
    file: { role: 'data', permissions: ownFile },
    'data-file': { role: 'data', optional: true, permissions: ownFile },
    backing: { role: 'backing', optional: true, permissions: backingFile },
  },
  reopens: true,
  compresses: true,

  async implicitChildren(_options, { children, filenames }) {
    const header = await readHeader(children['file']!)
    const named: Record<string, NodeOptions> = {}
    if (header.backingFile !== undefined && filenames['file'] !== undefined) await refuseLoop(filenames['file'])
    if (header.backingFile !== undefined)
      named['backing'] = await nodeOptionsOf(header.backingFile, header.backingFormat, filenames['file'])
    if (isSet(header.incompatible, Incompatible.dataFile) && header.dataFile !== undefined)
      named['data-file'] = { driver: 'file', filename: pathOf(header.dataFile, filenames['file']) }
    return named
  },

  async open(options, { children, readOnly, unmap, report }) {
    const { file, backing, 'data-file': dataFile } = children as { file: BlockIo; backing?: BlockIo; 'data-file'?: BlockIo }
    const header = await readHeader(file)
    checkCaches(options, 2 ** header.clusterBits)
    checkDataFile(header, dataFile)
    const image = await Image.open(
      { file, backing, dataFile },
      { readOnly, unmap: options['pass-discard-request'] ?? unmap, report, ...cacheBytes(options) },
    )
    return new Qcow2Node(image)
  },
}

function checkDataFile({ incompatible }: Header, dataFile: BlockIo | undefined) {
  const external = isSet(incompatible, Incompatible.dataFile)
  if (external && !dataFile) throw new InvalidParameter("'data-file' is required for this image")
  if (!external && dataFile) throw new InvalidParameter("'data-file' can only be set for images with an external data file")
}
