// A graph of our own, for commands that work on images without a daemon. Images are locked as the daemon and QEMU lock them.

import { open } from 'node:fs/promises'
import { Busy, InvalidParameter, IoError, NotSupported, ReadOnly } from '../../base/errors.ts'
import type { AnyDriver, NodeOptions } from '../../block/driver.ts'
import type { Edge } from '../../block/edge.ts'
import { Graph } from '../../block/graph.ts'
import type { GraphNode } from '../../block/graph-node.ts'
import { ALL, Permission } from '../../block/permissions.ts'
import type { JsonObject } from '../../control/json.ts'
import { file } from '../../drivers/file.ts'
import { nodeOptionsOf, withProtocols } from '../../drivers/qcow2/backing-name.ts'
import { raw } from '../../drivers/raw.ts'
import { foreignFormatOf } from '../../machines/foreign-format.ts'
import { openPlace } from '../open-repository.ts'
import { sizeOf } from './sizes.ts'

/** How the command line names an image. */
export interface ImageName {
  /** A path, `nbd://...`, `json:{...}`; or with `imageOpts` the options themselves, key=value,... */
  readonly name: string
  readonly format?: string | undefined
  readonly imageOpts?: boolean | undefined
  /** Whoever else may write to it meanwhile. */
  readonly forceShare?: boolean | undefined
}

const QCOW2_MAGIC = Buffer.from('QFI\xfb', 'latin1')
const READ = Permission.consistentRead
const WRITE = READ | Permission.write | Permission.resize
const USER = 'this command'

export class Images implements AsyncDisposable {
  // A plain file needs no more; all the others are a quarter of the time that a small command takes.
  readonly graph = new Graph([file, raw], { otherDrivers })

  /** Opens an image to be read; `backing: false` without what is behind it. */
  openReadOnly(image: ImageName, { backing = true } = {}): Promise<GraphNode> {
    return this.#open(image, { 'read-only': true, ...(image.forceShare && { 'force-share': true }) }, backing)
  }

  openWritable(image: ImageName, more: object = {}): Promise<GraphNode> {
    if (image.forceShare)
      throw new InvalidParameter('what is going to be written cannot be shared with other writers; leave out -U')
    return this.#open(image, { discard: 'unmap', ...more }, true)
  }

  /** By options that are known already; `name` is how the user called it. */
  async openAs(name: string, options: NodeOptions): Promise<GraphNode> {
    try {
      return await this.graph.open(options)
    } catch (error) {
      throw named(name, error)
    }
  }

  reader(node: GraphNode): Edge {
    return this.graph.attach(node, { description: USER, perm: READ, shared: ALL })
  }

  /** As `reader`, of what must not change meanwhile: whoever would write to it, and we ourselves, are refused. */
  copier(node: GraphNode): Edge {
    return this.graph.attach(node, { description: USER, perm: READ, shared: READ | Permission.writeUnchanged })
  }

  writer(node: GraphNode): Edge {
    return this.graph.attach(node, { description: USER, perm: WRITE, shared: ALL & ~Permission.resize })
  }

  /** As `writer`, of what others neither write nor expect to stay as it is. */
  overwriter(node: GraphNode): Edge {
    return this.graph.attach(node, { description: USER, perm: WRITE, shared: READ })
  }

  async [Symbol.asyncDispose]() {
    await this.graph[Symbol.asyncDispose]()
  }

  async #open(image: ImageName, more: object, backing: boolean): Promise<GraphNode> {
    const options = await optionsOf(image)
    const without = backing || options.driver !== 'qcow2' || 'backing' in options ? {} : { backing: null }
    return this.openAs(image.name, { ...options, ...without, ...more })
  }
}

async function otherDrivers(): Promise<readonly AnyDriver[]> {
  const [{ drivers }, { restorePoint }, { filters }] = await Promise.all([
    import('../../drivers/index.ts'),
    import('../../restore/restore-point.ts'),
    import('../../filters/index.ts'),
  ])
  return [...drivers, restorePoint(name => openPlace(name, {})), ...filters]
}

/** The name comes first, as qemu-img has it, unless the sentence has it anyway. */
export function named(name: string, error: unknown): unknown {
  const known = [Busy, InvalidParameter, IoError, NotSupported, ReadOnly].find(Class => error instanceof Class)
  if (!(error instanceof Error) || !known || error.message.includes(name)) return error
  return new known(`Could not open '${name}': ${error.message}`, { cause: error })
}

/** The driver that would open it. */
export const formatOf = async (image: ImageName): Promise<string> => (await optionsOf(image)).driver

/** In the words of blockdev-add. */
export async function optionsOf({ name, format, imageOpts }: ImageName): Promise<NodeOptions> {
  if (imageOpts) return fromKeyval(name, format)
  if (/^nbds(\+\w+)?:/i.test(name))
    throw new NotSupported(
      `'${name}': an export over TLS is not opened by its address; where there is --object, say --image-opts driver=nbd,...,tls-creds=ID, and else let nbdcopy copy it`,
    )
  if (name.startsWith('json:') || /^(nbd(\+\w+)?|file):/.test(name)) return nodeOptionsOf(name, format, `${process.cwd()}/image`)
  const driver = format ?? (await probe(name))
  const file = { driver: 'file', filename: name }
  return driver === 'file' ? file : { driver, file }
}

async function fromKeyval(text: string, format: string | undefined): Promise<NodeOptions> {
  const [{ keyvalToJson, parseKeyval }, { toPlain }, { qapiTypeOf }, { blockdevOptions }] = await Promise.all([
    import('../../control/keyval.ts'),
    import('../../control/json.ts'),
    import('../../control/qapi-type.ts'),
    import('../../control/blockdev-options.ts'),
  ])
  const options = toPlain(parseKeyval(text)) as Record<string, unknown>
  const driver = options['driver'] ?? format
  if (typeof driver !== 'string')
    throw new InvalidParameter(`--image-opts: name the driver, as in driver=qcow2,file.driver=file,file.filename=disk.qcow2`)
  // A text has no types: those of the drivers' own options count.
  const texts = withSizes(await withProtocols({ ...options, driver })) as JsonObject
  return toPlain(keyvalToJson(qapiTypeOf(blockdevOptions), texts, [])) as NodeOptions
}

/** What may be written with a unit, in bytes; QEMU takes 64M there where QMP takes a number only. */
const SIZES: ReadonlySet<string> = new Set([
  'offset',
  'size',
  'cache-size',
  'l2-cache-size',
  'refcount-cache-size',
  'prealloc-size',
])

function withSizes(value: unknown, key = ''): unknown {
  if (Array.isArray(value)) return value.map(one => withSizes(one))
  if (typeof value === 'object' && value !== null)
    return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, withSizes(member, name)]))
  return typeof value === 'string' && SIZES.has(key) ? sizeOf(value, key) : value
}

/** By its first bytes, as QEMU does. What we do not read is not taken for raw. */
async function probe(path: string): Promise<string> {
  let head: Buffer
  try {
    await using handle = await open(path, 'r')
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(512), 0, 512, 0)
    head = buffer.subarray(0, bytesRead)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code) return 'raw' // whoever opens it says what is wrong
    throw error
  }
  if (head.subarray(0, 4).equals(QCOW2_MAGIC)) return 'qcow2'
  const disk = {
    size: head.length,
    read: async (offset: number, into: Buffer) => into.set(head.subarray(offset, offset + into.length)),
  }
  const foreign = await foreignFormatOf(disk)
  if (foreign)
    throw new NotSupported(
      `'${path}' looks like ${foreign}, which is not supported; qemu-img converts it, or -f raw takes it for a plain disk`,
    )
  return 'raw'
}
