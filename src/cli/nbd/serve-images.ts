// Images over NBD without a daemon: opened, exported and served until they are no longer wanted.

import { access, constants, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join, resolve } from 'node:path'
import { formatNbdUri, type NbdAddress } from 'nbd-client-ts'
import { z } from 'zod'
import { createLog, type Log } from '../../base/log.ts'
import { isAddressOrNetwork } from '../../base/networks.ts'
import { writePidFile } from '../../base/pid-file.ts'
import { Turns } from '../../base/turns.ts'
import type { TlsCredentials } from '../../base/tls-credentials.ts'
import type { NodeOptions } from '../../block/driver.ts'
import type { GraphNode } from '../../block/graph-node.ts'
import { tlsTermsOf } from '../../control/commands/nbd-server-start.ts'
import { addObjectByText } from '../../control/commands/object-add.ts'
import { parseKeyval } from '../../control/keyval.ts'
import { accessBy, tlsTerms, type AccessRule } from '../../nbd-server/access.ts'
import { Exports } from '../../nbd-server/exports.ts'
import type { TlsTerms } from '../../nbd-server/handshake.ts'
import { activatedSockets, standardSocket } from '../../nbd-server/inherited.ts'
import type { ListenAddress } from '../../nbd-server/listening.ts'
import { Memory } from '../../nbd-server/memory.ts'
import { findBitmap, NodeExports } from '../../nbd-server/node-exports.ts'
import { NbdServer, type NbdServerOptions } from '../../nbd-server/server.ts'
import type { NbdOptions } from '../commands/nbd.ts'
import { Misuse } from '../failure.ts'
import { makeImage } from '../image/create.ts'
import { Images, optionsOf } from '../image/images.ts'
import { sizeOf } from '../image/sizes.ts'
import { untilStopped } from '../interruptible.ts'
import { print, printJson } from '../output.ts'

/** Bytes that requests of all clients may hold. */
const MEMORY = 256 << 20

interface Frame {
  readonly json: boolean
  /** Called once clients can connect. */
  ready(this: void): void | Promise<void>
}

/** Returns when it was stopped, or the last client has left and nothing says to go on. */
export async function serveImages(files: readonly string[], options: NbdOptions, { json, ready }: Frame): Promise<void> {
  const names = namesOf(files, options)
  const where = addressesOf(options)
  const log = createLog(options.verbose ? 'debug' : 'warn')
  await using parts = new AsyncDisposableStack()
  if (options.pidFile !== undefined) parts.use(await writePidFile(options.pidFile))
  const images = parts.use(new Images())
  for (const text of options.object ?? []) await addObjectByText(text, images.graph.objects)
  const tls = tlsOf(images, options)
  const rules = options.allow?.map(ruleOf)
  const speed = options.speed === undefined ? undefined : sizeOf(options.speed, 'Speed') || undefined
  const exports = new Exports()
  const nodeExports = parts.use(new NodeExports({ graph: images.graph, emit: () => undefined, turns: new Turns(), log }))
  const sizes: number[] = []
  for (const [index, file] of files.entries()) {
    const node = await openDisk(images, file, index, options)
    await nodeExports.add(exports, {
      id: `disk${index}`,
      name: names[index]!,
      description: options.description?.[index],
      node,
      writable: options.readOnly !== true,
      writethrough: options.cache === 'writethrough' || options.cache === 'directsync',
      allocationDepth: options.allocationDepth,
      singleWriter: options.singleWriter,
      bitmaps: options.bitmap?.map(name => ({ name, bitmap: findBitmap(node, name).bitmap })),
    })
    sizes.push(node.size)
  }

  const over = Promise.withResolvers<void>()
  const servers: NbdServer[] = []
  const terms: NbdServerOptions = {
    exports,
    log,
    memory: new Memory(MEMORY),
    maxConnections: options.shared,
    ...(tls && { tls }),
    ...(rules && { authorize: accessBy(rules) }),
    ...(options.keepAlive !== undefined && { keepAliveMs: options.keepAlive * 1000 }),
    ...(options.idle !== undefined && { idleMs: options.idle * 1000 }),
    speed,
    onLeave(served) {
      const alone = servers.every(({ connections }) => connections === 0)
      if (options.single || (served && alone && !options.persistent)) over.resolve()
    },
  }
  using _reloads = tls && reloadOnHangup(tls.credentials, log)
  const stopped = untilStopped(new AbortController().signal, over.promise) // whoever finds the socket may stop it at once
  try {
    if (options.single) {
      const server = parts.use(NbdServer.withoutListener(terms))
      servers.push(server)
      server.serve(await standardSocket())
    } else {
      for (const address of where) servers.push(parts.use(await NbdServer.listen(address, terms)))
      tell(servers, names, sizes, tls !== undefined, json)
    }
    await ready()
  } catch (error) {
    over.reject(error)
    await stopped
    throw error // it was stopped besides
  }
  await stopped
}

function tlsOf(images: Images, { tlsCreds, tlsAuthz, tlsOptional }: NbdOptions): TlsTerms | undefined {
  const terms = tlsTermsOf(images.graph.objects, tlsCreds, tlsAuthz)
  if (!terms && tlsOptional)
    throw new Misuse('--tls-optional says what goes without TLS too: say how it goes with it, by --tls-creds')
  return terms && { ...terms, ...tlsTerms(terms.credentials, tlsOptional) }
}

const rule = z.strictObject({
  address: z.string().refine(isAddressOrNetwork, 'must be an address or a network, such as 192.0.2.0/24').optional(),
  certificate: z.string().min(1).optional(),
  user: z.string().min(1).optional(),
  exports: z.union([z.string().transform(name => [name]), z.array(z.string())]).optional(),
  'read-only': z.enum(['on', 'off']).default('off'),
})

/** As objects are written: a comma within a value is doubled, several exports are exports.0, exports.1, ... */
function ruleOf(text: string): AccessRule {
  const { data, error } = rule.safeParse({ ...parseKeyval(text) })
  if (data) return { ...data, readOnly: data['read-only'] === 'on' }
  const [issue] = error.issues
  throw new Misuse(`--allow ${text}: ${issue?.path.join('.') || 'the rule'}: ${issue?.message}`)
}

/** One image needs no name; several are called like their files. */
function namesOf(files: readonly string[], { exportName = [], description = [] }: NbdOptions): string[] {
  if (exportName.length > files.length || description.length > files.length)
    throw new Misuse(`there are more names or descriptions than images; give one -x and one -D for each image at most`)
  const names = files.map((file, index) => exportName[index] ?? (files.length === 1 ? '' : basename(file)))
  const twice = names.find((name, index) => names.indexOf(name) !== index)
  if (twice !== undefined)
    throw new Misuse(`two exports would be called '${twice}'; give each a name with -x, in the order of the images`)
  return names
}

function addressesOf({ port, bind, socket, socketMode, single }: NbdOptions): ListenAddress[] {
  if (single) return []
  const activated = activatedSockets()
  if (activated.length > 0) {
    if (port !== undefined || bind !== undefined || socket !== undefined)
      throw new Misuse('the sockets to listen at were handed over (LISTEN_FDS); leave out -p, -b and -k')
    return activated.map(fd => ({ fd }))
  }
  if (socket === undefined) {
    if (socketMode !== undefined) throw new Misuse('--socket-mode is for a unix socket: name it with -k')
    return [{ host: bind ?? '127.0.0.1', ...(port !== undefined && { port }) }]
  }
  if (port !== undefined || bind !== undefined)
    throw new Misuse('-k listens at a unix socket, -p and -b at a port; choose one of them')
  const unix = socket.startsWith('@') ? `\0${socket.slice(1)}` : socket
  return [{ unix, ...(socketMode !== undefined && { mode: socketMode }) }]
}

async function openDisk(images: Images, file: string, index: number, options: NbdOptions) {
  const wanted = await wantedOptions(file, options)
  const { cache, readOnly = false, snapshot = false, discard = 'unmap', detectZeroes = 'off' } = options
  const generic = {
    'read-only': readOnly || snapshot,
    discard: { ignore: 'ignore', off: 'ignore', unmap: 'unmap', on: 'unmap' }[discard],
    'detect-zeroes': detectZeroes,
    cache: { direct: cache === 'none' || cache === 'directsync', 'no-flush': cache === 'unsafe' },
  }
  const disk = `disk${index}`
  const opened = await images.openAs(file, { ...generic, ...wanted, 'node-name': snapshot ? `${disk}-base` : disk })
  return snapshot ? await openOverlay(images, opened, disk) : opened
}

async function wantedOptions(file: string, { format, imageOpts, readOnly, snapshot, offset }: NbdOptions): Promise<NodeOptions> {
  const found = await optionsOf({ name: file, format, imageOpts })
  const guessed = format === undefined && !imageOpts && found.driver === 'raw' && typeof found['file'] === 'object'
  if (guessed && !readOnly && !snapshot && (await isReadable(file)))
    throw new Misuse(
      `'${file}' looks raw: say so with -f raw. A guest could write another format's header into it, and then what it looks like would be the guest's choice`,
    )
  if (offset === undefined) return found
  const begin = { offset: sizeOf(offset, 'Offset') }
  return found.driver === 'raw' ? { ...found, ...begin } : { driver: 'raw', ...begin, file: found }
}

/** Of what cannot be read nothing was seen, and whoever opens it says why. */
const isReadable = (file: string) =>
  access(file, constants.R_OK).then(
    () => true,
    () => false,
  )

/** A temporary image that is gone with the program. */
async function openOverlay(images: Images, base: GraphNode, name: string) {
  const folder = await mkdtemp(join(process.env['TMPDIR'] === undefined ? '/var/tmp' : tmpdir(), 'stillpoint-nbd-'))
  try {
    const path = join(folder, 'overlay.qcow2')
    await makeImage(images, { path, format: 'qcow2', options: [], size: Math.ceil(base.size / 512) * 512 })
    const overlay = { driver: 'qcow2', 'node-name': name, discard: 'unmap', file: { driver: 'file', filename: path } }
    return await images.graph.open({ ...overlay, backing: base.name, cache: { 'no-flush': true } })
  } finally {
    // Open files stay; nothing is left when the program is killed.
    await rm(folder, { recursive: true, force: true })
  }
}

const addressOf = (server: NbdServer): NbdAddress | undefined => {
  const { address } = server
  if (typeof address === 'string') return { path: address.startsWith('\0') ? address : resolve(address) }
  return address
    ? { host: { '0.0.0.0': '127.0.0.1', '::': '::1' }[address.address] ?? address.address, port: address.port }
    : undefined
}

function tell(servers: readonly NbdServer[], names: readonly string[], sizes: readonly number[], tls: boolean, json: boolean) {
  for (const server of servers) {
    const address = addressOf(server)
    if (!address) continue // of a unix socket that was handed over only systemd knows the name
    for (const [index, exportName] of names.entries()) {
      const uri = formatNbdUri({ address, exportName, ...(tls && { tls: {} }) })
      if (json) printJson({ name: exportName, size: sizes[index]!, uri })
      else print(`${uri}\n`)
    }
  }
}

function reloadOnHangup(credentials: TlsCredentials, log: Log): Disposable {
  const reload = () => {
    credentials.reload().then(
      () => log.info('read the certificates and keys again'),
      (error: unknown) => log.error('the certificates and keys could not be read again; the old ones count', { err: error }),
    )
  }
  process.on('SIGHUP', reload)
  return { [Symbol.dispose]: () => process.off('SIGHUP', reload) }
}
