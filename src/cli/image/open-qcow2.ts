// A qcow2 image as such, and not as a disk: to be checked and repaired, or to change its bitmaps.

import { NotSupported } from '../../base/errors.ts'
import type { NodeOptions } from '../../block/driver.ts'
import type { Edge } from '../../block/edge.ts'
import { ALL } from '../../block/permissions.ts'
import { pathOf } from '../../drivers/qcow2/backing-name.ts'
import { Image, readHeader } from '../../drivers/qcow2/image.ts'
import { qcow2 } from '../../drivers/qcow2/qcow2.ts'
import { named, optionsOf, type Images, type ImageName } from './images.ts'

interface How {
  readonly readOnly: boolean
  /** Though it is marked corrupt or was not closed. */
  readonly forRepair?: boolean
}

/** With its locks, until it is disposed. What is behind it is not opened: it is not needed, and may be missing. */
export async function openQcow2(images: Images, wanted: ImageName, { readOnly, forRepair = false }: How) {
  const { driver, file: below } = await optionsOf(wanted)
  if (driver !== 'qcow2' || typeof below !== 'object' || below === null)
    throw new NotSupported(`'${wanted.name}' is ${driver}, and this is for qcow2 images in files`)
  try {
    return await openParts(images, wanted, below as NodeOptions, { readOnly, forRepair })
  } catch (error) {
    throw named(wanted.name, error)
  }
}

async function openParts(images: Images, wanted: ImageName, below: NodeOptions, { readOnly, forRepair }: Required<How>) {
  await using opened = new AsyncDisposableStack()
  const share = wanted.forceShare ? { 'force-share': true } : {}
  const rule = qcow2.children['file']!.permissions({ perm: 0, shared: ALL }, readOnly)
  const permissions = wanted.forceShare ? { ...rule, shared: ALL } : rule
  const open = async (options: NodeOptions): Promise<Edge> => {
    const node = await images.graph.open({ ...options, 'read-only': readOnly, discard: 'unmap', ...share })
    opened.defer(() => images.graph.delete(node.name))
    const edge = images.graph.attach(node, { description: 'this command', ...permissions })
    opened.defer(() => images.graph.detach(edge))
    return edge
  }
  const file = await open(below)
  const { dataFile: dataName } = await readHeader(file)
  const dataFile =
    dataName === undefined ? undefined : await open({ driver: 'file', filename: pathOf(dataName, file.node.filename) })
  const image = await Image.open(
    { file, dataFile },
    { readOnly, unmap: true, l2CacheBytes: 32 << 20, refcountCacheBytes: 4 << 20, report: () => undefined, forRepair },
  )
  opened.defer(() => image.close())
  const parts = opened.move()
  return { image, [Symbol.asyncDispose]: () => parts.disposeAsync() }
}
