// stillpoint serve: disks of a restore point over NBD, straight from the repository or an archive. No daemon is asked.

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { Option } from 'commander'
import { Cancelled, messageOf } from '../../base/errors.ts'
import { formatSize, parseSize } from '../../base/units.ts'
import { verb } from '../define.ts'
import type { Repository } from '../../repository/repository.ts'
import type { Target } from '../../repository/target.ts'
import { findArchived, isArchive } from '../archived-point.ts'
import { exportUri } from '../export-uri.ts'
import { Misuse } from '../failure.ts'
import { clean } from '../format.ts'
import { configOption, openPlace, shortPoint, withRepository, type ConfigOption } from '../open-repository.ts'
import { note, print, printJson, tellOnTerminal } from '../output.ts'
import { findPointKey, pointArgument } from '../point-name.ts'
import type { Streamed, WritableDisk, WritableOptions } from '../serve-writable.ts'
import { table } from '../table.ts'
import { untilStopped } from '../interruptible.ts'

interface Options extends ConfigOption {
  /** The NBD server's. */
  readonly socket?: string
  readonly since?: readonly string[]
  /** A folder, and bytes. */
  readonly cache?: string
  readonly cacheSize?: number
  readonly writable?: boolean
  /** A file, or a folder. */
  readonly overlay?: string
  readonly stream?: boolean
}

export const serve = verb<{ repository: string; point: string }, Options>({
  name: 'serve',
  summary: 'serve the disks of a restore point over NBD, straight from the repository',
  details:
    'Until it is stopped, by ^C or SIGTERM. Nothing is copied before: what a client reads is fetched then, so a file can be had, or a machine started from an overlay, in seconds. What the restore point needs is kept in the repository meanwhile, also if it is forgotten. Clients see holes as base:allocation, and with --since what is not as in another restore point as qemu:dirty-bitmap:since-TIME-ID (of the first one also as qemu:dirty-bitmap:since). With --cache what was read of the repository is kept on a local disk, for this run and others: a cache may be shared, and removed at any time. With --writable a machine can use them at once: what it writes is in a qcow2 file over the restore point, and --stream copies the rest behind it until that file stands alone. The same command goes on after a crash; the restore point is pinned while a file needs it.',
  arguments: {
    '<repository>': 'its name in the configuration, or an archive that `repo export` wrote, called .zip',
    '<point>': `${pointArgument['<point>']}; with /DISK behind it only that disk`,
  },
  options: [
    configOption(),
    new Option('--socket <path>', 'the unix socket to listen at (default: one in a new folder)'),
    new Option(
      '--since <point>',
      'another restore point, older or newer: also say what is not as it was then; may be repeated',
    ).argParser((point: string, before: readonly string[] | undefined) => [...(before ?? []), point]),
    new Option('--cache <folder>', 'keep what was read of the repository in this folder, which others may use too'),
    new Option('--cache-size <size>', 'about as much is kept there at most (default: 10G)').argParser(cacheSize),
    new Option('--writable', 'disks that can be written, each over the restore point; needs --overlay').conflicts('since'),
    new Option(
      '--overlay <path>',
      'with --writable: the qcow2 file that holds what is written, or a folder with one for each disk',
    ),
    new Option('--stream', 'with --writable: copy the rest into the overlay, until it needs the repository no more'),
  ],
  namesDaemon: false,
  examples: [
    ['stillpoint serve offsite db/latest --socket /run/restore.sock', 'all disks of the newest restore point'],
    ['stillpoint serve offsite db/latest/root --socket /run/restore.sock', 'one of them'],
    [
      "qemu-img create -f qcow2 -F raw -b 'nbd+unix:///root?socket=/run/restore.sock' try.qcow2",
      'a disk to start a machine from',
    ],
    [
      'stillpoint serve offsite db/latest/root --writable --overlay root.qcow2 --stream --socket /run/restore.sock',
      'a disk to use at once, which is a file of its own in the end',
    ],
  ],
  async run({ args, options, json }) {
    const { keepHeapSmall } = await import('../../base/heap.ts')
    keepHeapSmall()
    const { writable = false, overlay, stream = false } = options
    if (writable !== (overlay !== undefined))
      throw new Misuse('--writable and --overlay go together: what is written must be somewhere')
    if (stream && !writable) throw new Misuse('--stream is for --writable: what is read-only has nowhere to be copied to')
    if (options.cacheSize !== undefined && options.cache === undefined) throw new Misuse('--cache-size is for --cache')
    if (options.cache === '') throw new Misuse('--cache needs a folder; where it comes from a variable, that is empty')
    const { point: name, disk } = parts(args.point)
    if (isArchive(args.repository)) {
      if (writable || options.since || options.cache !== undefined)
        throw new Misuse('an archive is served as it is: --writable, --since and --cache are for repositories')
      return serveArchived(args.repository, { name, disk, options, json })
    }
    return withRepository(args.repository, options, async direct => {
      await using stack = new AsyncDisposableStack()
      const { unix, uriOf } = await placeOf(options, stack)
      const cached = async (target: Target) => (options.cache === undefined ? target : await openCache(stack, target, options))
      const repository = direct.through(await cached(direct.target))
      const point = await findPointKey(repository, name)
      const since: string[] = []
      for (const other of options.since ?? []) since.push(await findPointKey(repository, other))
      if (overlay !== undefined) {
        const isLatest = name.endsWith('/latest')
        const openOwn = async (repository: string) => {
          const place = await openPlace(repository, options)
          return { ...place, target: await cached(place.target) }
        }
        const wanted = { repositoryName: args.repository, point, isLatest, disk, overlay, unix, openPlace: openOwn }
        return await serveOverlays(repository, wanted, { stream, json, uriOf })
      }
      const { servePoint } = await import('../serve-point.ts')
      const served = stack.use(await servePoint(repository, { point, since, disk, unix }))
      await tellUntilStopped(served, { point, json, uriOf })
    })
  },
})

async function serveArchived(
  path: string,
  { name, disk, options, json }: { name: string; disk: string | undefined; options: Options; json: boolean },
) {
  const [{ Archive }, { serveArchive }] = await Promise.all([import('../../archive/archive.ts'), import('../serve-point.ts')])
  await using stack = new AsyncDisposableStack()
  const archive = stack.use(await Archive.open(path))
  const point = findArchived(archive, name)
  const { unix, uriOf } = await placeOf(options, stack)
  const served = stack.use(await serveArchive(archive, point, { disk, unix }))
  await tellUntilStopped(served, { point: point.key, json, uriOf })
}

async function tellUntilStopped(
  {
    disks,
    signal,
  }: { readonly disks: readonly { readonly name: string; readonly size: number }[]; readonly signal: AbortSignal },
  { point, json, uriOf }: Omit<HowTold, 'stream'> & { readonly point: string },
) {
  const stopped = untilStopped(signal) // whoever hears of it may stop it at once
  tell(
    disks.map(({ name, size }) => ({ point: shortPoint(point), disk: name, size, uri: uriOf(name) })),
    json,
  )
  tellOnTerminal('Serving; ^C ends it.')
  await stopped
}

async function placeOf({ socket }: Options, stack: AsyncDisposableStack) {
  const unix = socket === undefined ? await ownSocket(stack) : resolve(socket)
  return { unix, uriOf: (name: string) => exportUri({ type: 'unix', path: unix }, name) }
}

async function openCache(stack: AsyncDisposableStack, target: Target, { cache, cacheSize }: Options): Promise<Target> {
  const { CACHE_BYTES, CachedTarget } = await import('../../restore/cached-target.ts')
  return stack.use(await CachedTarget.open(target, { folder: resolve(cache!), bytes: cacheSize ?? CACHE_BYTES, warn: note }))
}

function cacheSize(text: string) {
  const bytes = parseSize(text)
  if (bytes === undefined || bytes < MIN_CACHE)
    throw new Misuse(`--cache-size must be ${formatSize(MIN_CACHE)} at least, not '${text}'`)
  return bytes
}

const MIN_CACHE = 16 << 20

interface HowTold {
  readonly stream: boolean
  readonly json: boolean
  readonly uriOf: (disk: string) => string
}

async function serveOverlays(repository: Repository, wanted: WritableOptions, { stream, json, uriOf }: HowTold) {
  const { serveWritable } = await import('../serve-writable.ts')
  const stop = new AbortController()
  let streaming: Promise<void> | undefined
  {
    await using served = await serveWritable(repository, wanted)
    const of = ({ name, size, overlay, point }: WritableDisk) => ({
      ...(point !== undefined && { point: shortPoint(point) }),
      disk: name,
      size,
      uri: uriOf(name),
      overlay,
    })
    const stopped = untilStopped(stop.signal)
    tell(served.disks.map(of), json)
    for (const { point, overlay } of served.disks) if (point === undefined) note(`'${overlay}' stands alone already.`)
    for (const { point, overlay } of served.disks)
      if (point !== undefined && point !== wanted.point)
        note(`'${overlay}' is over ${shortPoint(point)}, and goes on from that; for the latest one name another file.`)
    tellOnTerminal('Serving; ^C ends it.')
    // A disk is served whatever becomes of the stream.
    if (stream) streaming = tellStreams(served.stream(stop.signal), json).catch((error: unknown) => note(messageOf(error)))
    await stopped
    stop.abort(new Cancelled('the server was stopped'))
  }
  await streaming
}

async function tellStreams(streams: AsyncIterable<Streamed>, json: boolean) {
  for await (const { disk, error } of streams) {
    if (error !== undefined) note(`The stream of disk '${clean(disk.name)}' has stopped, and will be begun again: ${error}`)
    else if (json) printJson({ disk: disk.name, overlay: disk.overlay, standsAlone: true })
    else print(`${disk.overlay} stands alone now: disk '${clean(disk.name)}' needs the repository no more.\n`)
  }
}

interface Told {
  readonly point?: string | undefined
  readonly disk: string
  readonly size: number
  readonly uri: string
  readonly overlay?: string
}

function tell(disks: readonly Told[], json: boolean) {
  if (json) return print(disks.map(disk => `${JSON.stringify(disk)}\n`).join(''))
  print(
    table(disks, [
      { title: 'DISK', of: ({ disk }) => disk },
      { title: 'SIZE', right: true, of: ({ size }) => formatSize(size) },
      { title: 'URI', of: ({ uri }) => uri },
      ...(disks.some(({ overlay }) => overlay !== undefined) ? [{ title: 'OVERLAY', of: ({ overlay }: Told) => overlay }] : []),
    ]),
  )
}

/** A restore point is MACHINE/TIME-ID, and what is behind that is a disk. */
function parts(name: string): { point: string; disk: string | undefined } {
  const [machine = '', time = '', ...disk] = name.replace(/^points\//, '').split('/')
  return { point: [machine, time].filter(Boolean).join('/'), disk: disk.length > 0 ? disk.join('/') : undefined }
}

async function ownSocket(stack: AsyncDisposableStack) {
  const folder = await mkdtemp(join(process.env['XDG_RUNTIME_DIR'] ?? tmpdir(), 'stillpoint-serve-'))
  stack.defer(() => rm(folder, { recursive: true, force: true }))
  return join(folder, 'nbd.sock')
}
