// stillpoint point: the restore points of a repository.

import { formatSize } from '../../base/units.ts'
import { verb, type Noun } from '../define.ts'
import { clean, formatTime } from '../format.ts'
import { configOption, repositoryArgument, shortPoint, withRepository, type ConfigOption } from '../open-repository.ts'
import { note, print, printJson } from '../output.ts'
import { findPointKey, pointArgument } from '../point-name.ts'
import { facts, table } from '../table.ts'
import { checkRepository } from '../verify-repository.ts'
import { Option } from 'commander'
import type { Manifest } from '../../repository/manifest.ts'

const sum = (manifest: Manifest, of: 'size' | 'dirty' | 'stored') => manifest.disks.reduce((total, disk) => total + disk[of], 0)

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
      const points = await Array.fromAsync(repository.points(options.machine))
      if (json) return points.forEach(({ key, manifest }) => printJson({ point: shortPoint(key), ...manifest }))
      if (points.length === 0) note('No restore points.')
      print(
        table(points, [
          { title: 'POINT', of: ({ key }) => shortPoint(key) },
          { title: 'TIME', of: ({ manifest }) => formatTime(manifest.time) },
          { title: 'DISKS', right: true, of: ({ manifest }) => manifest.disks.length },
          { title: 'SIZE', right: true, of: ({ manifest }) => formatSize(sum(manifest, 'size')) },
          { title: 'CHANGED', right: true, of: ({ manifest }) => formatSize(sum(manifest, 'dirty')) },
          { title: 'STORED', right: true, of: ({ manifest }) => formatSize(sum(manifest, 'stored')) },
          { title: 'STATE', of: ({ manifest }) => (manifest.complete ? manifest.consistency : 'incomplete') },
        ]),
      )
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

const verifyPoint = verb<Named, ConfigOption>({
  name: 'verify',
  summary: 'look whether a restore point can be restored',
  details: 'Every chunk of it is read, decrypted and compared with its id.',
  arguments: pointArguments,
  options: [configOption()],
  namesDaemon: false,
  examples: [['stillpoint point verify offsite db/20261125T020000Z-1a2b3c4d', 'exits with 21 when something of it is damaged']],
  run: ({ args, options, json }) =>
    withRepository(args.repository, options, async repository => {
      const key = await findPointKey(repository, args.point)
      return checkRepository(repository, { level: 'deep', points: [key] }, json)
    }),
})

export const point: Noun = {
  name: 'point',
  summary: 'restore points: list, show and verify them',
  verbs: [list, show, verifyPoint],
}
