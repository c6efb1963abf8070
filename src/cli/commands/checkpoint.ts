// stillpoint checkpoint: the named instants of machines.

import { Option } from 'commander'
import { formatSize } from '../../base/units.ts'
import { connectDaemon } from '../connect.ts'
import { verb, type Noun } from '../define.ts'
import { clean, formatTime } from '../format.ts'
import { note, print, printJson } from '../output.ts'
import { quiesceOptions } from '../quiesce-options.ts'
import type { CheckpointInfo } from '../replies.ts'
import { facts, table } from '../table.ts'

const MACHINE = 'the machine, as the configuration calls it'

const create = verb<{ machine: string; name?: string }, { description?: string; quiesce?: boolean }>({
  name: 'create',
  summary: 'make a checkpoint of all disks of a machine at one instant',
  details: 'From then on the daemon knows what changed since. Guests go on writing meanwhile.',
  arguments: { '<machine>': MACHINE, '[name]': 'what to call it (default: the time)' },
  options: [new Option('--description <text>', 'a note to keep with it'), ...quiesceOptions],
  examples: [
    ['stillpoint checkpoint create db monday', 'one instant over all disks of the machine db'],
    ['stillpoint checkpoint create db monday --quiesce', 'the file systems of its guest frozen for that instant'],
    ['stillpoint checkpoint create db --description "before the upgrade"', 'called by the time, with a note'],
  ],
  async run({ args: { machine, name }, options: { description, quiesce }, json, socket }) {
    await using daemon = await connectDaemon(socket)
    const made = await daemon.ask('checkpoint-create', { machine, name, description, quiesce })
    if (json) printJson(made)
    else print(describe(made))
  },
})

const list = verb<{ machine?: string }>({
  name: 'list',
  summary: 'list the checkpoints of a machine or of all, oldest first',
  arguments: { '[machine]': MACHINE },
  examples: [
    ['stillpoint checkpoint list db', 'the checkpoints of db'],
    [`stillpoint checkpoint list --json | jq -r 'select(.usable) | .name'`, 'those an increment can begin from'],
  ],
  async run({ args: { machine }, json, socket }) {
    await using daemon = await connectDaemon(socket)
    const checkpoints = await daemon.ask('query-checkpoints', { machine })
    if (json) return checkpoints.forEach(printJson)
    if (checkpoints.length === 0) note(`No checkpoints; this makes one: stillpoint checkpoint create ${machine ?? 'MACHINE'}`)
    print(
      table(checkpoints, [
        { title: 'MACHINE', of: ({ machine }) => machine },
        { title: 'CHECKPOINT', of: ({ name }) => name },
        { title: 'TIME', of: ({ time }) => formatTime(time) },
        { title: 'CONSISTENCY', of: ({ consistency }) => consistency },
        { title: 'STATE', of: stateOf },
        { title: 'DESCRIPTION', of: ({ problem, description }) => problem ?? description },
      ]),
    )
  },
})

const show = verb<{ machine: string; name: string }, { size?: boolean }>({
  name: 'show',
  summary: 'show what is known of a checkpoint',
  arguments: { '<machine>': MACHINE, '<name>': 'the checkpoint' },
  options: [new Option('--size', 'also how much has changed since')],
  examples: [['stillpoint checkpoint show db monday --size', 'how large would an increment since monday be?']],
  async run({ args: { machine, name }, options: { size }, json, socket }) {
    await using daemon = await connectDaemon(socket)
    const found = await daemon.ask('query-checkpoints', { machine, name, size })
    for (const checkpoint of found) {
      if (json) printJson(checkpoint)
      else print(describe(checkpoint))
    }
  },
})

const remove = verb<{ machine: string; name: string }, { children?: boolean; metadataOnly?: boolean }>({
  name: 'delete',
  summary: 'delete a checkpoint; what changed since the others stays known',
  details: 'Prints the names of what was deleted.',
  arguments: { '<machine>': MACHINE, '<name>': 'the checkpoint' },
  options: [
    new Option('--children', 'and all that are younger'),
    new Option('--metadata-only', 'forget it, and leave its bitmaps where they are'),
  ],
  examples: [
    ['stillpoint checkpoint delete db monday', 'no increment will begin from it any more'],
    ['stillpoint checkpoint delete db monday --children', 'with all that were made after it'],
  ],
  async run({ args: { machine, name }, options: { children, metadataOnly }, json, socket }) {
    await using daemon = await connectDaemon(socket)
    const { deleted } = await daemon.ask('checkpoint-delete', { machine, name, children, 'metadata-only': metadataOnly })
    for (const name of deleted) {
      if (json) printJson({ machine, name, deleted: true })
      else print(`${clean(name)}\n`)
    }
  },
})

const repair = verb<{ machine: string }, { dryRun?: boolean }>({
  name: 'repair',
  summary: 'put right what is wrong with the bitmaps of checkpoints',
  details:
    'Bitmaps that no checkpoint knows are merged into the current one. Where a bitmap is missing or inconsistent, the disk counts as changed as a whole since that checkpoint and all older ones, so that backups since them can be had again. Prints what was found.',
  arguments: { '<machine>': MACHINE },
  options: [new Option('--dry-run', 'only say what is wrong')],
  examples: [
    ['stillpoint checkpoint repair db --dry-run', 'what is wrong?'],
    ['stillpoint checkpoint repair db', 'put it right'],
  ],
  async run({ args: { machine }, options: { dryRun = false }, json, socket }) {
    await using daemon = await connectDaemon(socket)
    const { findings, mended } = await daemon.ask('checkpoint-repair', { machine, mend: !dryRun })
    if (json) return findings.forEach(finding => printJson({ machine, mended, ...finding }))
    if (findings.length === 0) note('Nothing is wrong.')
    print(
      table(findings, [
        { title: 'DISK', of: ({ disk }) => disk },
        { title: 'BITMAP', of: ({ bitmap }) => bitmap },
        { title: 'PROBLEM', of: ({ problem }) => problem },
        { title: 'REASON', of: ({ reason }) => reason },
      ]),
    )
  },
})

const stateOf = ({ current, usable }: CheckpointInfo) => (usable ? (current ? 'current' : 'usable') : 'unusable')

const describe = (checkpoint: CheckpointInfo) =>
  facts({
    machine: checkpoint.machine,
    checkpoint: checkpoint.name,
    parent: checkpoint.parent,
    time: formatTime(checkpoint.time),
    description: checkpoint.description,
    consistency: checkpoint.consistency,
    disks: checkpoint.disks.join(', '),
    state: stateOf(checkpoint),
    problem: checkpoint.problem,
    changed: checkpoint.changed === undefined ? undefined : formatSize(checkpoint.changed),
  })

export const checkpoint: Noun = {
  name: 'checkpoint',
  summary: 'named instants of a machine, from which increments begin',
  verbs: [create, list, show, remove, repair],
}
