// stillpoint serve: disks of a restore point over NBD, straight from the repository. No daemon is asked.

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { Option } from 'commander'
import { formatSize } from '../../base/units.ts'
import { verb } from '../define.ts'
import { exportUri } from '../export-uri.ts'
import { configOption, repositoryArgument, shortPoint, withRepository, type ConfigOption } from '../open-repository.ts'
import { print, printJson, tellOnTerminal } from '../output.ts'
import { findPointKey, pointArgument } from '../point-name.ts'
import { table } from '../table.ts'
import { untilStopped } from '../interruptible.ts'

interface Options extends ConfigOption {
  /** The NBD server's. */
  readonly socket?: string
  readonly since?: string
}

export const serve = verb<{ repository: string; point: string }, Options>({
  name: 'serve',
  summary: 'serve the disks of a restore point over NBD, read-only, straight from the repository',
  details:
    'Until it is stopped, by ^C or SIGTERM. Nothing is copied before: what a client reads is fetched then, so a file can be had, or a machine started from an overlay, in seconds. What the restore point needs is kept in the repository meanwhile, also if it is forgotten. Clients see holes as base:allocation, and with --since what changed as qemu:dirty-bitmap:since.',
  arguments: { ...repositoryArgument, '<point>': `${pointArgument['<point>']}; with /DISK behind it only that disk` },
  options: [
    configOption(),
    new Option('--socket <path>', 'the unix socket to listen at (default: one in a new folder)'),
    new Option('--since <point>', 'an older restore point: also say what changed since'),
  ],
  namesDaemon: false,
  examples: [
    ['stillpoint serve offsite db/latest --socket /run/restore.sock', 'all disks of the newest restore point'],
    ['stillpoint serve offsite db/latest/root --socket /run/restore.sock', 'one of them'],
    [
      "qemu-img create -f qcow2 -F raw -b 'nbd+unix:///root?socket=/run/restore.sock' try.qcow2",
      'a disk to start a machine from',
    ],
  ],
  run: ({ args, options, json }) =>
    withRepository(args.repository, options, async repository => {
      const { point: name, disk } = parts(args.point)
      const point = await findPointKey(repository, name)
      const since = options.since === undefined ? undefined : await findPointKey(repository, options.since)
      await using stack = new AsyncDisposableStack()
      const unix = options.socket === undefined ? await ownSocket(stack) : resolve(options.socket)
      const { servePoint } = await import('../serve-point.ts')
      const served = stack.use(await servePoint(repository, { point, since, disk, unix }))
      const disks = served.disks.map(({ name, size }) => ({
        disk: name,
        size,
        uri: exportUri({ type: 'unix', path: unix }, name),
      }))
      if (json) disks.forEach(one => printJson({ point: shortPoint(point), ...one }))
      else
        print(
          table(disks, [
            { title: 'DISK', of: ({ disk }) => disk },
            { title: 'SIZE', right: true, of: ({ size }) => formatSize(size) },
            { title: 'URI', of: ({ uri }) => uri },
          ]),
        )
      tellOnTerminal('Serving; ^C ends it.')
      await untilStopped(served.signal)
    }),
})

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
