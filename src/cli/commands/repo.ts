// stillpoint repo: the repositories of the configuration, made and looked after. These commands ask no daemon, so they also work where
// it runs no more.

import { Option } from 'commander'
import { formatSize, parseDuration, parseSize } from '../../base/units.ts'
import type { Manifest } from '../../repository/manifest.ts'
import { verb, type Noun } from '../define.ts'
import { exportVerb, importVerb } from './export-import.ts'
import { keyVerb } from './repo-key.ts'
import { Misuse } from '../failure.ts'
import { formatTime, plural } from '../format.ts'
import {
  configOption,
  count,
  openPlace,
  repositoryArgument,
  shortPoint,
  withRepository,
  type ConfigOption,
} from '../open-repository.ts'
import { note, print, printJson } from '../output.ts'
import { facts, table } from '../table.ts'
import { checkRepository, levelOption, type CheckOptions } from '../verify-repository.ts'

const shared = { arguments: repositoryArgument, namesDaemon: false }
interface Named {
  readonly repository: string
}

const init = verb<Named, ConfigOption & { chunkSize?: string }>({
  ...shared,
  name: 'init',
  summary: 'make a repository where the configuration says',
  details:
    'It is encrypted where the configuration has a key for it. Whether several hosts may write to it is found out by trying what the store can do.',
  options: [configOption(), new Option('--chunk-size <size>', 'of new disks: a power of two from 64K to 4M').default('256K')],
  examples: [['stillpoint repo init offsite', 'once, before the first backup']],
  async run({ args: { repository: name }, options: { chunkSize: text, ...options }, json }) {
    const chunkSize = parseSize(text!)
    if (chunkSize === undefined || chunkSize < 65_536 || chunkSize > 4 << 20 || !Number.isInteger(Math.log2(chunkSize)))
      throw new Misuse(`--chunk-size must be a power of two from 64K to 4M, such as 256K, not '${text}'`)
    await using place = await openPlace(name, options)
    const { initRepository } = await import('../../repository/repository-file.ts')
    const file = await initRepository(place.target, { passphrase: place.passphrase, chunkSize })
    const { location } = place.target
    if (json)
      return printJson({
        repository: name,
        location,
        id: file.id,
        encrypted: file.encrypted,
        cas: file.cas,
        'chunk-size': chunkSize,
      })
    print(
      `${location}: the repository is made${file.encrypted ? ', and encrypted: keep a copy of its key elsewhere' : ', and not encrypted'}\n`,
    )
    if (!file.cas) note('Its store cannot compare and swap, so one host may write to it: the one that does so first.')
  },
})

const check = verb<Named, ConfigOption & CheckOptions & { rebuildIndex?: boolean }>({
  ...shared,
  name: 'check',
  summary: 'look whether everything in a repository is there, and is what was written',
  details:
    'quick: the packs are there, with their sizes. scrub: and their bytes are those of their names, for which no key is needed. deep: and every chunk of every restore point can be had.',
  options: [
    configOption(),
    levelOption('quick'),
    new Option(
      '--budget <size>',
      'read about as much (scrub: packs; deep: restore points), and begin with what was looked at longest ago',
    ),
    new Option('--rebuild-index', 'before that, make what is damaged or missing of the index anew, from the packs'),
    new Option('--quarantine', 'let new backups rely on no pack that is damaged, so that they upload its chunks anew'),
  ],
  examples: [
    ['stillpoint repo check offsite', 'in a minute'],
    ['stillpoint repo check offsite --level scrub --quarantine', 'read everything, and let the next backup heal what it can'],
    ['stillpoint repo check offsite --level scrub --budget 50G', 'every night a part, in turn'],
    ['stillpoint repo check offsite --rebuild-index', 'when a command says that the index is damaged or not complete'],
  ],
  run: ({ args: { repository: name }, options, json }) =>
    withRepository(name, options, async repository => {
      if (options.rebuildIndex) {
        const { rebuildIndex } = await import('../../repository/rebuild-index.ts')
        const { removed, packs } = await rebuildIndex(repository)
        note(`The index: ${plural(removed.length, 'damaged object')} removed, ${plural(packs, 'pack')} taken into it again.`)
      }
      return await checkRepository(repository, options, json)
    }),
})

interface MachineStats {
  readonly points: number
  readonly oldest: string
  readonly newest: string
  /** Bytes of the disks of the newest, and of all. */
  readonly size: number
  readonly total: number
  /** What its restore points took when they were made. */
  readonly stored: number
}

function addPoint(machines: Map<string, MachineStats>, { machine, time, disks }: Manifest) {
  const size = disks.reduce((sum, disk) => sum + disk.size, 0)
  const stored = disks.reduce((sum, disk) => sum + disk.stored, 0)
  const before = machines.get(machine)
  if (!before) return machines.set(machine, { points: 1, oldest: time, newest: time, size, total: size, stored })
  const isNewest = time > before.newest
  return machines.set(machine, {
    points: before.points + 1,
    oldest: time < before.oldest ? time : before.oldest,
    newest: isNewest ? time : before.newest,
    size: isNewest ? size : before.size,
    total: before.total + size,
    stored: before.stored + stored,
  })
}

const stats = verb<Named, ConfigOption>({
  ...shared,
  name: 'stats',
  summary: 'say what a repository holds',
  options: [configOption()],
  examples: [['stillpoint repo stats offsite', 'sizes, restore points, who is at work']],
  run: ({ args: { repository: name }, options, json }) =>
    withRepository(name, options, async repository => {
      const [{ loadIndex }, { listSessions }, { ownerOf }] = await Promise.all([
        import('../../repository/repository-index.ts'),
        import('../../repository/commit.ts'),
        import('../../repository/owner.ts'),
      ])
      const { target, file } = repository
      const { index, state } = await loadIndex(target, repository.id)
      const sizes = [...index.packs().values()]
      const machines = new Map<string, MachineStats>()
      const damaged: string[] = []
      for await (const { manifest } of repository.points(undefined, undefined, key => damaged.push(key)))
        addPoint(machines, manifest)
      const sessions = await Array.fromAsync(listSessions(target, undefined, ({ key }) => damaged.push(key)))
      const owner = await ownerOf(repository)
      const all = {
        repository: name,
        location: target.location,
        id: file.id,
        created: file.created,
        encrypted: file.encrypted,
        cas: file.cas,
        owner: owner?.host,
        packs: sizes.length,
        bytes: sizes.reduce((sum, size) => sum + size, 0),
        chunks: index.data.count,
        sessions: sessions
          .filter(({ record }) => record.state === 'active')
          .map(({ record }) => ({ kind: record.kind, host: record.host, started: record.started })),
        collecting: state.plan?.phase,
        machines: [...machines].map(([machine, rest]) => ({ machine, ...rest })),
        damaged: damaged.length > 0 ? damaged : undefined,
      }
      const shown = all.machines.reduce((sum, { total }) => sum + total, 0)
      if (json) return printJson(all)
      print(
        facts({
          location: all.location,
          made: formatTime(all.created),
          encrypted: all.encrypted ? 'yes' : 'no',
          writers: all.cas ? 'any host' : (all.owner ?? 'one host, none yet'),
          holds: `${formatSize(all.bytes)} in ${plural(all.packs, 'pack')}, ${plural(all.chunks, 'chunk')}`,
          'stands for': shown > 0 ? `${formatSize(shown)} of disks, in all restore points` : undefined,
          damaged: damaged.length > 0 ? `${damaged.join(', ')}: "stillpoint repo check" says more` : undefined,
          'at work': all.sessions.map(({ kind, host }) => `${kind} on ${host}`).join(', ') || 'nobody',
        }),
      )
      const rows = table(all.machines, [
        { title: 'MACHINE', of: ({ machine }) => machine },
        { title: 'POINTS', right: true, of: ({ points }) => points },
        { title: 'SIZE', right: true, of: ({ size }) => formatSize(size) },
        { title: 'STORED', right: true, of: ({ stored }) => formatSize(stored) },
        { title: 'OLDEST', of: ({ oldest }) => formatTime(oldest) },
        { title: 'NEWEST', of: ({ newest }) => formatTime(newest) },
      ])
      print(rows === '' ? '' : `\n${rows}`)
    }),
})

const rules = ['last', 'hourly', 'daily', 'weekly', 'monthly', 'yearly'] as const
type Keep = Partial<Record<`keep${Capitalize<(typeof rules)[number]>}`, number>> & { keepWithin?: string }

const prune = verb<Named & { machine: string }, ConfigOption & Keep & { dryRun?: boolean }>({
  ...shared,
  name: 'prune',
  summary: 'forget the restore points of a machine that no rule keeps',
  details:
    'The rules are those of Proxmox Backup: last, hourly, daily, weekly, monthly, yearly, within, in this order; each keeps the newest of as many periods. The newest complete restore point, those that are pinned and those in use stay. What only forgotten ones needed is deleted by `repo gc`.',
  arguments: { ...repositoryArgument, '<machine>': 'whose restore points' },
  options: [
    configOption(),
    ...rules.map(rule =>
      new Option(`--keep-${rule} <count>`, `keep ${rule === 'last' ? 'the newest ones' : `${rule} ones`}`).argParser(
        count(`keep-${rule}`),
      ),
    ),
    new Option('--keep-within <time>', 'keep what is not older, such as 3d'),
    new Option('--dry-run', 'say what would be forgotten, and why the rest would be kept'),
  ],
  examples: [['stillpoint repo prune offsite db --keep-last 3 --keep-daily 14 --keep-weekly 8 --dry-run', 'what would go?']],
  run: ({ args: { repository: name, machine }, options, json }) =>
    withRepository(name, options, async repository => {
      const { prune } = await import('../../repository/prune.ts')
      const withinMs = options.keepWithin === undefined ? undefined : parseDuration(options.keepWithin)
      if (options.keepWithin !== undefined && withinMs === undefined)
        throw new Misuse(`--keep-within must be a time such as 3d, not '${options.keepWithin}'`)
      const {
        keepLast: last,
        keepHourly: hourly,
        keepDaily: daily,
        keepWeekly: weekly,
        keepMonthly: monthly,
        keepYearly: yearly,
      } = options
      const policy = { last, hourly, daily, weekly, monthly, yearly, withinMs }
      const given = Object.fromEntries(Object.entries(policy).filter(([, value]) => value !== undefined))
      const decisions = await prune(repository, machine, given, { dryRun: options.dryRun ?? false })
      if (json) return decisions.forEach(({ key, ...rest }) => printJson({ point: shortPoint(key), ...rest }))
      if (decisions.length === 0) note(`${machine} has no restore points there.`)
      const gone = options.dryRun ? 'would be forgotten' : 'forgotten'
      print(
        table(decisions, [
          { title: 'POINT', of: ({ key }) => shortPoint(key) },
          { title: '', of: ({ keep }) => (keep ? 'kept' : gone) },
          { title: 'BECAUSE', of: ({ reason }) => reason },
        ]),
      )
    }),
})

const gc = verb<Named, ConfigOption & { grace: string; repack?: string }>({
  ...shared,
  name: 'gc',
  summary: 'delete what no restore point needs any more',
  details:
    'Backups and restores may run meanwhile. What is found is deleted by a later run, once the grace period is over; each run does what can be done by then. A pack goes when nobody needs any of it; --repack writes anew what is needed of those that are mostly waste.',
  options: [
    configOption(),
    new Option('--grace <time>', 'how long what nobody needs stays').default('24h'),
    new Option('--repack <size>', 'before that, write up to this much anew of packs of which at least half is waste'),
  ],
  examples: [
    ['stillpoint repo gc offsite', 'every day'],
    ['stillpoint repo gc offsite --repack 20G', 'and make use of space that is wasted in packs'],
  ],
  run: ({ args: { repository: name }, options, json }) =>
    withRepository(name, options, async repository => {
      const { collect } = await import('../../repository/collector.ts')
      const graceMs = parseDuration(options.grace)
      if (graceMs === undefined) throw new Misuse(`--grace must be a time such as 24h, not '${options.grace}'`)
      const budget = options.repack === undefined ? undefined : parseSize(options.repack)
      if (options.repack !== undefined && !budget)
        throw new Misuse(`--repack must be a size such as 20G, not '${options.repack}'`)
      const { repack } = await import('../../repository/repack.ts')
      const repacked = budget === undefined ? undefined : await repack(repository, { budget })
      const result = await collect(repository, { graceMs })
      if (json) return printJson({ ...result, repacked })
      if (repacked)
        print(
          repacked.packs > 0
            ? `Repacked: ${plural(repacked.packs, 'pack')}, ${formatSize(repacked.bytes)}; ${formatSize(repacked.written)} written anew.\n`
            : 'Nothing to repack.\n',
        )
      const what = `${plural(result.packs, 'pack')}, ${formatSize(result.bytes)}`
      const told = {
        nothing: 'Nothing to delete.',
        deleted: `Deleted: ${what}.`,
        waiting: `Not needed any more: ${what}. A run after the grace period deletes it.`,
      }
      print(`${told[result.state]}\n`)
    }),
})

const takeOver = verb<Named, ConfigOption>({
  ...shared,
  name: 'take-over',
  summary: 'make this host the one that writes to a repository whose store allows only one',
  details:
    'Only where the store cannot compare and swap, and the host that wrote to it so far is gone for good: if both write, backups are lost.',
  options: [configOption()],
  examples: [['stillpoint repo take-over offsite', 'after the host has been replaced']],
  run: ({ args: { repository: name }, options, json }) =>
    withRepository(name, options, async repository => {
      const { takeOver } = await import('../../repository/owner.ts')
      await takeOver(repository)
      if (json) return printJson({ repository: name, owner: repository.me.host })
      print(`${repository.target.location}: ${repository.me.host} writes to it from now on\n`)
    }),
})

export const repo: Noun = {
  name: 'repo',
  summary: 'repositories: make, check and tidy them',
  verbs: [init, check, stats, prune, gc, exportVerb, importVerb, keyVerb, takeOver],
}
