// stillpoint point: the restore points of a repository.

import { Busy } from '../../base/errors.ts'
import { formatSize } from '../../base/units.ts'
import { verb, type Noun } from '../define.ts'
import { exitCodes } from '../exit-codes.ts'
import { Misuse } from '../failure.ts'
import { clean, formatTime } from '../format.ts'
import { interruptible } from '../interruptible.ts'
import { configOption, repositoryArgument, shortPoint, withRepository, type ConfigOption } from '../open-repository.ts'
import { note, print, printJson } from '../output.ts'
import { findPointKey, pointArgument } from '../point-name.ts'
import { facts, table } from '../table.ts'
import { checkRepository } from '../verify-repository.ts'
import { copyVerb } from './point-copy.ts'
import { Option } from 'commander'
import type { Damaged } from '../../repository/faults.ts'
import type { Manifest } from '../../repository/manifest.ts'

const sum = (manifest: Manifest, of: 'size' | 'dirty' | 'stored') => manifest.disks.reduce((total, disk) => total + disk[of], 0)

const stateOf = ({ complete, consistency }: Manifest, pinned: boolean) =>
  `${complete ? consistency : 'incomplete'}${pinned ? ', pinned' : ''}`

const list = verb<{ repository: string }, ConfigOption & { machine?: string }>({
  name: 'list',
  summary: 'list the restore points of a repository, oldest first for each machine',
  details: 'CHANGED is what differed from the restore point before, STORED what that took in the repository.',
  arguments: repositoryArgument,
  options: [configOption(), new Option('--machine <name>', 'only those of this machine')],
  namesDaemon: false,
  examples: [['stillpoint point list offsite --machine db', 'what db can be restored to']],
  run: ({ args: { repository: name }, options, json }) =>
    withRepository(name, options, async repository => {
      const { pinnedPoints } = await import('../../repository/points.ts')
      // The others are there, and are what somebody may be looking for.
      let exitCode: number | undefined
      const damaged = (_: string, { message }: Damaged) => {
        note(message)
        exitCode = exitCodes.damageFound
      }
      const points = await Array.fromAsync(repository.points(options.machine, undefined, damaged))
      const pinned = await pinnedPoints(repository)
      if (json) {
        for (const { key, manifest } of points) printJson({ point: shortPoint(key), pinned: pinned.has(key), ...manifest })
        return exitCode
      }
      if (points.length === 0) note('No restore points.')
      print(
        table(points, [
          { title: 'POINT', of: ({ key }) => shortPoint(key) },
          { title: 'TIME', of: ({ manifest }) => formatTime(manifest.time) },
          { title: 'DISKS', right: true, of: ({ manifest }) => manifest.disks.length },
          { title: 'SIZE', right: true, of: ({ manifest }) => formatSize(sum(manifest, 'size')) },
          { title: 'CHANGED', right: true, of: ({ manifest }) => formatSize(sum(manifest, 'dirty')) },
          { title: 'STORED', right: true, of: ({ manifest }) => formatSize(sum(manifest, 'stored')) },
          { title: 'STATE', of: ({ key, manifest }) => stateOf(manifest, pinned.has(key)) },
        ]),
      )
      return exitCode
    }),
})

interface Named {
  readonly repository: string
  readonly point: string
}
const pointArguments = { ...repositoryArgument, ...pointArgument }

const show = verb<Named, ConfigOption>({
  name: 'show',
  summary: 'show a restore point: its disks, and how and why they were read so',
  arguments: pointArguments,
  options: [configOption()],
  namesDaemon: false,
  examples: [['stillpoint point show offsite db/20261125T020000Z-1a2b3c4d', 'with what `point list` shows']],
  run: ({ args, options, json }) =>
    withRepository(args.repository, options, async repository => {
      const { key, manifest } = await repository.point(await findPointKey(repository, args.point))
      if (json) return printJson({ point: shortPoint(key), ...manifest })
      print(
        facts({
          point: shortPoint(key),
          machine: manifest.machine,
          time: formatTime(manifest.time),
          state: `${manifest.consistency}${manifest.complete ? '' : ', and some disks are missing'}`,
          after: manifest.parent === null ? undefined : shortPoint(manifest.parent),
          attached: manifest.attachments.map(({ name }) => clean(name)).join(', ') || undefined,
        }),
      )
      const rows = table(manifest.disks, [
        { title: 'DISK', of: ({ name }) => name },
        { title: 'SIZE', right: true, of: ({ size }) => formatSize(size) },
        { title: 'CHANGED', right: true, of: ({ dirty }) => formatSize(dirty) },
        { title: 'STORED', right: true, of: ({ stored }) => formatSize(stored) },
        { title: 'CHECKPOINT', of: ({ checkpoint }) => checkpoint },
        { title: 'READ', of: ({ read }) => `${read.mode}: ${read.why}` },
      ])
      print(`\n${rows}`)
    }),
})

const verifyPoint = verb<Named, ConfigOption & { against?: string; disk?: string; format?: string }>({
  name: 'verify',
  summary: 'look whether a restore point can be restored, or whether a disk is as it was then',
  details:
    'Every chunk of it is read, decrypted and compared with its id. With --against the other disk is read instead, and of the restore point nothing but what its chunks should be; ranges that differ are listed, and it exits with 1.',
  arguments: pointArguments,
  options: [
    configOption(),
    new Option('--against <image>', 'compare a disk with this: a file, a block device, nbd://...'),
    new Option('--disk <name>', 'which disk; to be left out where there is only one'),
    new Option('--format <format>', 'of the image').choices(['raw', 'qcow2']),
  ],
  namesDaemon: false,
  examples: [
    ['stillpoint point verify offsite db/20261125T020000Z-1a2b3c4d', 'exits with 21 when something of it is damaged'],
    ['stillpoint point verify offsite db/latest --disk root --against root.raw', 'is this image as the disk was then?'],
  ],
  run: ({ args, options, json }) =>
    withRepository(args.repository, options, async repository => {
      const { against, disk, format } = options
      if (against === undefined && (disk ?? format) !== undefined) throw new Misuse('--disk and --format go with --against')
      const key = await findPointKey(repository, args.point)
      if (against !== undefined) {
        const { comparePoint } = await import('../compare-point.ts')
        return interruptible(signal => comparePoint(repository, { key, against, disk, format, json, signal }))
      }
      return checkRepository(repository, { level: 'deep', points: [key] }, json)
    }),
})

const changed = verb<{ repository: string; older: string; newer: string; disk?: string }, ConfigOption & { ranges?: boolean }>({
  name: 'diff',
  summary: 'say what changed on the disks between two restore points',
  details: 'Only what differs is looked at, and no data is read, so it takes a moment whatever the size of the disks.',
  arguments: {
    ...repositoryArgument,
    '<older>': pointArgument['<point>'],
    '<newer>': 'another one of the same machine',
    '[disk]': 'only this disk',
  },
  options: [configOption(), new Option('--ranges', 'list the ranges, by offset and length in bytes')],
  namesDaemon: false,
  examples: [
    ['stillpoint point diff offsite db/20261124 db/latest', 'how much changed since the 24th'],
    ['stillpoint point diff offsite db/20261124 db/latest root --ranges', 'and where'],
  ],
  run: ({ args, options, json }) =>
    withRepository(args.repository, options, repository =>
      interruptible(async signal => {
        const keys = [await findPointKey(repository, args.older), await findPointKey(repository, args.newer)] as const
        const { diffPoints } = await import('../diff-points.ts')
        const disks = await diffPoints(repository, keys, { disk: args.disk, signal })
        if (json) return disks.forEach(({ ranges, ...disk }) => printJson({ ...disk, ...(options.ranges && { ranges }) }))
        print(
          table(disks, [
            { title: 'DISK', of: ({ disk }) => disk },
            { title: 'SIZE', right: true, of: ({ size }) => formatSize(size) },
            { title: 'CHANGED', right: true, of: ({ changed }) => formatSize(changed) },
            { title: 'IN PLACES', right: true, of: ({ ranges }) => ranges.length },
          ]),
        )
        for (const { disk, only } of disks)
          if (only) print(only === 'newer' ? `${clean(disk)} is new\n` : `${clean(disk)} is gone: only the older one has it\n`)
        if (!options.ranges) return
        for (const { disk, ranges } of disks)
          for (const { offset, length } of ranges) print(`${clean(disk)} ${offset} ${length}\n`)
      }),
    ),
})

const pinPoint = verb<Named, ConfigOption & { reason?: string }>({
  name: 'pin',
  summary: 'keep a restore point: neither `repo prune` nor `point forget` takes it away',
  arguments: pointArguments,
  options: [configOption(), new Option('--reason <text>', 'why, for people')],
  namesDaemon: false,
  examples: [["stillpoint point pin offsite db/20261125T020000 --reason 'before the upgrade'", 'until it is unpinned']],
  run: ({ args, options, json }) =>
    withRepository(args.repository, options, async repository => {
      const key = await findPointKey(repository, args.point)
      const { pin } = await import('../../repository/points.ts')
      await pin(repository, key, options.reason)
      if (json) printJson({ point: shortPoint(key), pinned: true })
    }),
})

const unpinPoint = verb<Named, ConfigOption>({
  name: 'unpin',
  summary: 'let retention decide about a restore point again',
  arguments: pointArguments,
  options: [configOption()],
  namesDaemon: false,
  examples: [['stillpoint point unpin offsite db/20261125T020000', 'it may go with the others']],
  run: ({ args, options, json }) =>
    withRepository(args.repository, options, async repository => {
      const key = await findPointKey(repository, args.point)
      const { unpin } = await import('../../repository/points.ts')
      await unpin(repository, key)
      if (json) printJson({ point: shortPoint(key), pinned: false })
    }),
})

const forgetPoint = verb<Named, ConfigOption & { force?: boolean }>({
  name: 'forget',
  summary: 'give up a restore point',
  details:
    'It cannot be restored any more; what only it needed is deleted by `repo gc`. One that is pinned, or that somebody reads, stays; so does the newest complete one of its machine, but for --force.',
  arguments: pointArguments,
  options: [configOption(), new Option('--force', 'also the newest complete one')],
  namesDaemon: false,
  examples: [['stillpoint point forget offsite db/20261125T020000', 'gone, and its space with the next `repo gc`']],
  run: ({ args, options, json }) =>
    withRepository(args.repository, options, async repository => {
      const key = await findPointKey(repository, args.point)
      const { machine } = (await repository.point(key)).manifest
      const points = await Array.fromAsync(repository.points(machine))
      const newest = points.findLast(({ manifest }) => manifest.complete)
      if (newest?.key === key && !options.force)
        throw new Busy(
          `${shortPoint(key)} is the newest complete restore point of '${clean(machine)}'; say --force if it shall go all the same`,
        )
      const { forget } = await import('../../repository/points.ts')
      await forget(repository, key)
      if (json) printJson({ point: shortPoint(key), forgotten: true })
    }),
})

export const point: Noun = {
  name: 'point',
  summary: 'restore points: list, show, compare, verify, copy, pin and forget them',
  verbs: [list, show, changed, verifyPoint, copyVerb, pinPoint, unpinPoint, forgetPoint],
}
