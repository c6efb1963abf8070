// What an NBD server exports: qemu-nbd --list.

import { formatNbdUri, NbdError, NbdNegotiation, NbdOptionError, parseNbdUri, type ExportInfo, type NbdUri } from 'nbd-client-ts'
import { TransmissionFlag } from 'nbd-client-ts/protocol'
import { InvalidParameter, IoError } from '../../base/errors.ts'
import { addObjectByText } from '../../control/commands/object-add.ts'
import { Objects } from '../../block/objects.ts'
import { tlsOfObject } from '../../drivers/nbd-tls.ts'
import type { NbdOptions } from '../commands/nbd.ts'
import { Misuse } from '../failure.ts'
import { clean } from '../format.ts'
import { print, printJson } from '../output.ts'

/** In qemu-nbd's words and order. */
const flagNames: readonly (readonly [number, string])[] = [
  [TransmissionFlag.READ_ONLY, 'readonly'],
  [TransmissionFlag.SEND_FLUSH, 'flush'],
  [TransmissionFlag.SEND_FUA, 'fua'],
  [TransmissionFlag.ROTATIONAL, 'rotational'],
  [TransmissionFlag.SEND_TRIM, 'trim'],
  [TransmissionFlag.SEND_WRITE_ZEROES, 'zeroes'],
  [TransmissionFlag.SEND_DF, 'df'],
  [TransmissionFlag.CAN_MULTI_CONN, 'multi'],
  [TransmissionFlag.SEND_RESIZE, 'resize'],
  [TransmissionFlag.SEND_CACHE, 'cache'],
  [TransmissionFlag.SEND_FAST_ZERO, 'fast-zero'],
  [TransmissionFlag.BLOCK_STATUS_PAYLOAD, 'block-status-payload'],
]

interface Found extends Partial<ExportInfo> {
  readonly name: string
  readonly contexts: readonly string[]
}

export async function listExports(servers: readonly string[], options: NbdOptions, json: boolean): Promise<void> {
  if (options.exportName || options.bitmap || options.persistent)
    throw new Misuse('-L lists all that a server exports; leave out the options that say what is served, and how')
  const uri = await serverOf(servers, options)
  const found = await explore(uri)
  if (json) for (const one of found) printJson(objectOf(one))
  else print(textOf(found))
}

async function serverOf(servers: readonly string[], options: NbdOptions): Promise<string> {
  const { port, bind, socket, object = [], tlsCreds, tlsHostname } = options
  const named = socket !== undefined || port !== undefined || bind !== undefined
  if (servers.length > 1 || (servers.length > 0 && named)) throw new Misuse('-L lists one server: a URI, or -k, or -b and -p')
  const objects = new Objects()
  for (const text of object) await addObjectByText(text, objects)
  const tls = tlsCreds === undefined ? undefined : tlsOfObject(tlsCreds, objects.find(tlsCreds), tlsHostname)
  const from = servers.length === 1 ? parse(servers[0]!) : { address: addressOf(options), exportName: '' }
  return formatNbdUri({ ...from, ...(tls && { tls }) })
}

function parse(uri: string): NbdUri {
  try {
    return parseNbdUri(uri)
  } catch (error) {
    throw error instanceof NbdError ? new InvalidParameter(error.message, { cause: error }) : error
  }
}

const addressOf = ({ port, bind, socket }: NbdOptions): NbdUri['address'] => {
  if (socket !== undefined) return { path: socket.startsWith('@') ? `\0${socket.slice(1)}` : socket }
  return { host: bind ?? 'localhost', ...(port !== undefined && { port }) }
}

async function explore(uri: string): Promise<Found[]> {
  try {
    await using server = await NbdNegotiation.open(uri, { allowLocalFiles: true }) // who calls us has named them
    const found: Found[] = []
    for (const { name, description } of await server.list()) {
      const info = await infoOf(server, name)
      const contexts = info && server.replies !== 'simple' ? await contextsOf(server, name) : []
      found.push({ name, ...info, description: info?.description ?? description, contexts })
    }
    return found
  } catch (error) {
    throw error instanceof NbdError ? new IoError(error.message, { cause: error }) : error
  }
}

/** Undefined where the server is so old that it tells only who enters. */
async function infoOf(server: NbdNegotiation, name: string): Promise<ExportInfo | undefined> {
  try {
    return await server.info(name)
  } catch (error) {
    if (error instanceof NbdOptionError && error.code === 'ERR_UNSUP') return undefined
    throw error
  }
}

/** Servers of an older kind have none, and some say so by an error. */
async function contextsOf(server: NbdNegotiation, name: string): Promise<string[]> {
  try {
    return await server.listContexts(name)
  } catch (error) {
    if (error instanceof NbdOptionError) return []
    throw error
  }
}

const namesOf = (flags: number) => flagNames.filter(([flag]) => (flags & flag) !== 0).map(([, name]) => name)

const objectOf = ({ name, description, size, flags, blockSizes, contexts }: Found) => ({
  name,
  description: description === '' ? undefined : description,
  size,
  flags: flags === undefined ? undefined : namesOf(flags),
  'block-sizes': blockSizes && { minimum: blockSizes.minimum, preferred: blockSizes.preferred, maximum: blockSizes.maximum },
  contexts,
})

function textOf(found: readonly Found[]): string {
  const lines = [`exports available: ${found.length}`]
  for (const { name, description, size, flags, blockSizes, contexts } of found) {
    lines.push(` export: '${clean(name)}'`)
    if (description) lines.push(`  description: ${clean(description)}`)
    if (size !== undefined) lines.push(`  size:  ${size}`)
    if (flags) lines.push(`  flags: 0x${flags.toString(16)} ( ${[...namesOf(flags), ')'].join(' ')}`)
    if (blockSizes)
      lines.push(
        `  min block: ${blockSizes.minimum}`,
        `  opt block: ${blockSizes.preferred}`,
        `  max block: ${blockSizes.maximum}`,
      )
    if (contexts.length > 0)
      lines.push(`  available meta contexts: ${contexts.length}`, ...contexts.map(name => `   ${clean(name)}`))
  }
  return `${lines.join('\n')}\n`
}
