// The image that a disk is copied to: made, or used as it is, by the flags of libvirt's block copy (SHALLOW, REUSE_EXT, COPY_RAW).

import { rm, stat } from 'node:fs/promises'
import { InvalidParameter, NotFound, strerror } from '../base/errors.ts'
import { backingOf, withoutFilters } from '../block/chain.ts'
import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import { makeImage } from '../transactions/new-image.ts'
import { formatSize } from '../base/units.ts'
import { foreignFormatOf } from './foreign-format.ts'

export interface CopyTargetOptions {
  readonly filename: string
  /** Copy the disk's own image only: what is behind it is behind the copy too. */
  readonly shallow?: boolean | undefined
  /** Use the image that is there. */
  readonly reuse?: boolean | undefined
  /** By default the disk's own. */
  readonly format?: 'raw' | 'qcow2' | undefined
  readonly nodeName?: string | undefined
  /** Makes a file for the dirty bitmaps of a raw image, and says where it is. */
  readonly newBitmapsFile: () => Promise<string>
}

export interface CopyTarget {
  readonly node: GraphNode
  /** A disk with nothing behind it is copied in full, whatever was asked for. */
  readonly shallow: boolean
  /** The copy came to nothing before it began: what was made for it goes. */
  undo(): Promise<void>
}

/** @throws InvalidParameter, NotFound, in libvirt's words where it has some */
export async function openCopyTarget(
  graph: Graph,
  disk: { readonly id: string; readonly node: GraphNode },
  options: CopyTargetOptions,
): Promise<CopyTarget> {
  const { filename, reuse = false, nodeName } = options
  const { id, node: source } = disk
  const behind = backingOf(source)
  const shallow = options.shallow === true && behind !== undefined
  const there = await kindOf(filename)
  const isDevice = there === 'device'
  if (reuse && !there) throw new NotFound(`missing destination file for disk '${id}': ${filename}`)
  if (!reuse && there && !isDevice)
    throw new InvalidParameter(
      `external destination file for disk '${id}' already exists and is not a block device: ${filename}; to use it as it is say --reuse-external`,
    )
  const format = options.format ?? (isDevice && !reuse ? 'raw' : formatOf(source))
  if (shallow && format === 'raw' && !reuse)
    throw new InvalidParameter(
      `shallow copy of disk '${id}' into a raw file is not possible; copy it in full, or into a qcow2 image`,
    )
  if (isDevice && format !== 'raw' && !reuse)
    throw new InvalidParameter(
      `'${filename}' is a block device: put an image into it first and say --reuse-external, or copy with --raw`,
    )

  await using undo = new AsyncDisposableStack()
  if (!there) {
    const image = shallow ? withoutFilters(behind) : undefined
    const backing = image && { file: fileBehind(image), format: image.driver.name }
    await makeImage(graph, { filename, format, size: source.size, backing, replace: false })
    undo.defer(() => rm(filename, { force: true }))
  }
  const file = { driver: 'file', filename }
  if (reuse && format === 'raw' && options.format === undefined) await refuseForeign(graph, filename)
  const bitmaps = format === 'raw' ? await options.newBitmapsFile() : undefined
  if (bitmaps !== undefined) undo.defer(() => rm(bitmaps, { force: true }))
  const node = await graph.open({
    driver: format,
    discard: 'unmap',
    file,
    ...(bitmaps !== undefined && { bitmaps: { driver: 'file', filename: bitmaps } }),
    ...(nodeName !== undefined && { 'node-name': nodeName }),
    ...(format === 'qcow2' && !reuse && { backing: shallow ? behind.name : null }),
  })
  undo.defer(() => closed(graph, node))
  checkSize(id, source, node, filename)
  const parts = undo.move()
  return { node, shallow, undo: () => parts.disposeAsync() }
}

/** A node that somebody has opened, and that stays his. */
export function givenTarget(
  graph: Graph,
  { id, node: source }: { readonly id: string; readonly node: GraphNode },
  { nodeName, shallow = false }: { readonly nodeName: string; readonly shallow?: boolean | undefined },
): CopyTarget {
  const node = graph.get(nodeName)
  checkSize(id, source, node, `node '${nodeName}'`)
  return { node, shallow: shallow && backingOf(source) !== undefined, undo: async () => undefined }
}

function checkSize(id: string, source: GraphNode, target: GraphNode, name: string) {
  if (target.size !== source.size)
    throw new InvalidParameter(
      `disk '${id}' has ${source.size} bytes and ${name} ${target.size} (${formatSize(target.size)}): a copy must be as large as the disk`,
    )
}

/** Nobody uses it, or others keep it. */
async function closed(graph: Graph, node: GraphNode) {
  node.owned = false
  await graph.closeUnused(node)
}

const formatOf = ({ driver }: GraphNode) => (driver.name === 'qcow2' ? 'qcow2' : 'raw')

async function kindOf(filename: string): Promise<'file' | 'device' | undefined> {
  try {
    return (await stat(filename)).isBlockDevice() ? 'device' : 'file'
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw new InvalidParameter(`Could not open '${filename}': ${strerror(error)}`, { cause: error })
  }
}

function fileBehind(backing: GraphNode): string {
  if (backing.filename === undefined)
    throw new InvalidParameter(
      `the image behind the disk, node '${backing.name}', has no file that a new image could name: copy in full`,
    )
  return backing.filename
}

/** What its guest wrote must not make a raw image one of another format (CVE-2008-1945), and the user may have meant that one. */
async function refuseForeign(graph: Graph, filename: string) {
  const node = await graph.open({ driver: 'file', filename, 'read-only': true })
  const foreign = await foreignFormatOf(node.io)
  await graph.delete(node.name)
  if (foreign !== undefined)
    throw new InvalidParameter(
      `${filename} looks like ${foreign}; say --format qcow2 if that is what it is, or --raw to write over it`,
    )
}
