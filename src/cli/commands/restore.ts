// stillpoint restore: disks out of a repository. No daemon is asked, so it works where everything else is gone.

import { Option } from 'commander'
import { formatSize } from '../../base/units.ts'
import { findArchived, isArchive } from '../archived-point.ts'
import { verb } from '../define.ts'
import { exitCodes } from '../exit-codes.ts'
import { Misuse } from '../failure.ts'
import { clean, formatSpan, plural } from '../format.ts'
import { interruptible } from '../interruptible.ts'
import { configOption, shortPoint, withRepository, type ConfigOption } from '../open-repository.ts'
import { print, printJson } from '../output.ts'
import { findPointKey, pointArgument } from '../point-name.ts'
import type { Restored } from '../restore/restore-disks.ts'
import type { RestoreSource } from '../restore/source.ts'

interface Options extends ConfigOption {
  readonly to?: string
  readonly format?: 'raw' | 'qcow2'
  readonly inPlace?: boolean
  readonly force?: boolean
  readonly skipDamaged?: boolean
}

export const restore = verb<{ repository: string; point: string; disk?: string; target?: string }, Options>({
  name: 'restore',
  summary: 'restore disks from a repository, to files, a block device or an NBD export',
  details:
    'No daemon is needed. A new file has `.partial` behind its name until all of it is there. What is there already and holds data is not touched without --force or --in-place, and what is in use is not touched at all. A target that is called .qcow2 gets that format, if --format does not say otherwise.',
  arguments: {
    '<repository>': 'its name in the configuration, or an archive that `repo export` wrote, called .zip',
    ...pointArgument,
    '[disk]': 'which disk; to be left out where there is only one, or with --to for all of them',
    '[target]': 'a file, a block device, or nbd://...; not with --to',
  },
  options: [
    configOption(),
    new Option(
      '--to <folder>',
      'restore all disks, or the one that is named, to files in this folder, called DISK.raw or DISK.qcow2',
    ),
    new Option('--format <format>', 'of the target').choices(['raw', 'qcow2']),
    new Option('--in-place', 'the target holds an older or newer state of the disk: read it, and write only what differs'),
    new Option('--force', 'overwrite what the target holds').conflicts('inPlace'),
    new Option('--skip-damaged', 'restore what can be had of a damaged disk; says what is missing, and exits with 21'),
  ],
  namesDaemon: false,
  examples: [
    ['stillpoint restore offsite db/latest --to /restore', 'all disks of the newest restore point'],
    ['stillpoint restore offsite db/20261125T020000 root root.qcow2', 'one disk, to a new image'],
    ['stillpoint restore offsite db/latest root /dev/vg0/root --in-place', 'back onto a device, and only what differs'],
    ['stillpoint restore db.zip latest --to /restore', 'from a portable archive'],
    ["stillpoint restore offsite db/latest root 'nbd://host/root' --force", 'into an NBD export'],
  ],
  run: ({ args, options, json }) => {
    const { format, force = false, inPlace = false, skipDamaged = false } = options
    const { disk, to } = whatAndWhere(args, options)
    const from = async (source: RestoreSource, point: string, signal: AbortSignal) => {
      const { restoreDisks } = await import('../restore/restore-disks.ts')
      let damaged = false
      for await (const one of restoreDisks(source, { disk, to, format, force, inPlace, skipDamaged, signal })) {
        damaged ||= one.damaged.length > 0
        tell(shortPoint(point), one, json)
      }
      return damaged ? exitCodes.damageFound : undefined
    }
    if (isArchive(args.repository))
      return interruptible(async signal => {
        const [{ Archive }, { archiveSource }] = await Promise.all([
          import('../../archive/archive.ts'),
          import('../restore/source.ts'),
        ])
        await using archive = await Archive.open(args.repository)
        const point = findArchived(archive, args.point)
        return await from(archiveSource(archive, point), point.key, signal)
      })
    return restoreFrom(args, options, from)
  },
})

async function restoreFrom<T>(
  { repository: name, point: wanted }: { readonly repository: string; readonly point: string },
  options: Options,
  restoreAll: (source: RestoreSource, point: string, signal: AbortSignal) => Promise<T>,
) {
  // They start while the configuration is read, and while it is found out what there is to restore, and where to.
  const { SealThreads } = await import('../../repository/seal-threads.ts')
  await using threads = new SealThreads()
  threads.wake()
  return await withRepository(name, options, repository =>
    interruptible(async signal => {
      const point = await findPointKey(repository, wanted)
      const { repositorySource } = await import('../restore/source.ts')
      await using source = await repositorySource(repository, point, { threads, signal })
      return await restoreAll(source, point, signal)
    }),
  )
}

function whatAndWhere({ disk, target }: { disk?: string; target?: string }, { to }: Options) {
  if (to !== undefined) {
    if (target !== undefined) throw new Misuse('say either a target or --to FOLDER')
    return { disk, to: { folder: to } }
  }
  const last = target ?? disk
  if (last === undefined) throw new Misuse('say where to restore to: a file, a block device, nbd://..., or --to FOLDER')
  return { disk: target === undefined ? undefined : disk, to: { target: last } }
}

function tell(point: string, { disk, target, size, written, zeroed, damaged, ms }: Restored, json: boolean) {
  if (json) return printJson({ point, disk, target, size, written, zeroed, damaged, milliseconds: Math.round(ms) })
  const speed = ms >= 1000 ? `, ${formatSize((written / ms) * 1000)}/s` : ''
  print(
    `${target}: ${clean(disk)}, ${formatSize(size)} restored, ${formatSize(written)} written in ${formatSpan(Math.max(ms, 1000))}${speed}\n`,
  )
  if (damaged.length === 0) return
  const lost = damaged.reduce((sum, { length }) => sum + length, 0)
  print(`damaged: ${formatSize(lost)} of it could not be had, in ${plural(damaged.length, 'place')}:\n`)
  for (const { offset, length } of damaged) print(`  ${length} bytes at ${offset}\n`)
}
