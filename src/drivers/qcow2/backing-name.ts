// What the name of a backing file means, in the words of blockdev-add.
//
// It is a path, relative to the folder of the image that names it; or `json:` and the options themselves; or an address, nbd://HOST/EXPORT
// and the like (QEMU's block.c, path_combine and bdrv_parse_filename). Where the image does not say what format the file has, it is looked at, as QEMU does.

import { open } from 'node:fs/promises'
import { dirname, isAbsolute, join } from 'node:path'
import type { NbdUri } from 'nbd-client-ts'
import { InvalidParameter, messageOf } from '../../base/errors.ts'
import type { NodeOptions } from '../../block/driver.ts'
import { MAGIC } from './format.ts'

/** `imageFile` is the path of the image that says so, where it has one. */
export async function nodeOptionsOf(
  name: string,
  format: string | undefined,
  imageFile: string | undefined,
): Promise<NodeOptions> {
  if (name.startsWith('json:')) return await fromJson(name.slice(5), format)
  if (/^nbd(\+\w+)?:/.test(name)) return inFormat(format ?? 'raw', await nbdOptions(name))
  const protocol = /^([a-z][a-z0-9+.-]*):/.exec(name)?.[1]
  if (protocol !== undefined && protocol !== 'file')
    throw new InvalidParameter(`Unknown protocol '${protocol}' of the backing file '${name}'`)
  const path = pathOf(name, imageFile)
  return inFormat(format ?? (await probe(path)), { driver: 'file', filename: path })
}

/** The path of a backing file or data file that is a plain file; undefined where it is something else. */
export function pathOf(name: string, imageFile: string | undefined): string {
  const path = name.replace(/^file:(\/\/)?/, '')
  if (isAbsolute(path)) return path
  if (imageFile === undefined)
    throw new InvalidParameter(`'${name}' is relative to the image, and where that is nobody knows; name the file by an option`)
  return join(dirname(imageFile), path)
}

const inFormat = (format: string, file: NodeOptions): NodeOptions =>
  format === file.driver || format === 'file' ? file : { driver: format, file }

async function fromJson(text: string, format: string | undefined): Promise<NodeOptions> {
  let options: unknown
  try {
    options = JSON.parse(text)
  } catch (error) {
    throw new InvalidParameter(`Could not parse the JSON options of the backing file: ${messageOf(error)}`, { cause: error })
  }
  if (typeof options !== 'object' || options === null || Array.isArray(options))
    throw new InvalidParameter('Invalid JSON object given for the backing file')
  const nested = unflatten(options as Record<string, unknown>)
  const driver = nested['driver'] ?? format
  if (typeof driver !== 'string') throw new InvalidParameter("the JSON options of the backing file lack 'driver'")
  return await withProtocols({ ...nested, driver })
}

/** Where only a name says what is to be opened as a file, the name says by what driver: `file.filename=disk.img`, as QEMU's bdrv_open takes it. */
export async function withProtocols(options: NodeOptions): Promise<NodeOptions> {
  const inferred: Record<string, unknown> = { ...options }
  for (const key of ['file', 'backing', 'data-file']) {
    const child = inferred[key]
    if (typeof child !== 'object' || child === null || Array.isArray(child)) continue
    const { driver, filename, ...more } = child as Record<string, unknown>
    if (driver === undefined && typeof filename === 'string' && key !== 'backing')
      inferred[key] = { ...(await nodeOptionsOf(filename, 'file', `${process.cwd()}/image`)), ...more }
    else if (typeof driver === 'string') inferred[key] = await withProtocols(child as NodeOptions)
  }
  return inferred as NodeOptions
}

/** QEMU takes `{"file.filename": ...}` for `{"file": {"filename": ...}}`. */
function unflatten(options: Record<string, unknown>): Record<string, unknown> {
  const nested: Record<string, unknown> = Object.create(null) as Record<string, unknown>
  for (const [key, value] of Object.entries(options)) {
    const path = key.split('.')
    const last = path.pop()!
    let into = nested
    for (const part of path) {
      const inner = into[part]
      into = (typeof inner === 'object' && inner !== null ? inner : (into[part] = Object.create(null))) as Record<string, unknown>
    }
    into[last] =
      typeof value === 'object' && value !== null && !Array.isArray(value) ? unflatten(value as Record<string, unknown>) : value
  }
  return nested
}

/** nbd://host[:port]/export, nbd+unix:///export?socket=path, and the older nbd:host:port[:exportname=x], nbd:unix:path[:exportname=x]. */
async function nbdOptions(name: string): Promise<NodeOptions> {
  const old = /^nbd:(?:unix:(?<path>[^:]+)|(?<host>\[[^\]/]+\]|[^:/[]+):(?<port>\d+))(?::exportname=(?<name>.*))?$/.exec(
    name,
  )?.groups
  if (old) {
    const { path, host, port, name: exportName = '' } = old
    return nbdNode({
      exportName,
      address: path === undefined ? { host: host!.replace(/^\[(.*)\]$/, '$1'), port: Number(port) } : { path },
    })
  }
  const { NbdUriError, parseNbdUri } = await import('nbd-client-ts')
  try {
    return nbdNode(parseNbdUri(name))
  } catch (error) {
    if (!(error instanceof NbdUriError)) throw error
    throw new InvalidParameter(`'${name}' is no address of an NBD export: ${error.message}`, { cause: error })
  }
}

function nbdNode({ address, exportName }: NbdUri): NodeOptions {
  const server =
    'host' in address
      ? { type: 'inet', host: address.host, port: String(address.port ?? 10_809) }
      : address.path.startsWith('\0')
        ? { type: 'unix', path: address.path.slice(1), abstract: true }
        : { type: 'unix', path: address.path }
  return { driver: 'nbd', server, ...(exportName && { export: exportName }) }
}

async function probe(path: string): Promise<string> {
  try {
    await using handle = await open(path, 'r')
    const { bytesRead, buffer } = await handle.read(Buffer.alloc(4), 0, 4, 0)
    return bytesRead === 4 && buffer.readUInt32BE(0) === MAGIC ? 'qcow2' : 'raw'
  } catch (error) {
    throw new InvalidParameter(`Could not open the backing file '${path}': ${messageOf(error)}`, { cause: error })
  }
}
