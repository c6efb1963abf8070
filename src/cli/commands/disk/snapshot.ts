// stillpoint disk snapshot: from an instant on, what is written goes to overlays.

import { join, resolve } from 'node:path'
import { Option } from 'commander'
import { timeName } from '../../../base/time.ts'
import { connectDaemon } from '../../connect.ts'
import type { Daemon } from '../../daemon-client.ts'
import { verb } from '../../define.ts'
import { Misuse } from '../../failure.ts'
import { print, printJson } from '../../output.ts'
import { quiesceOptions } from '../../quiesce-options.ts'
import { NotFound } from '../../../base/errors.ts'
import { namedDisk } from './named-disk.ts'

interface Options {
  readonly to?: string
  readonly name?: string
  readonly disk?: readonly string[]
  readonly reuse?: boolean
  readonly quiesce?: boolean
}

export const snapshot = verb<{ what: string; file?: string }, Options>({
  name: 'snapshot',
  summary: 'put overlays over disks at one instant: what is written from then on goes there',
  details:
    'The images as they are now stay behind the overlays, and are written to no more. All disks that are named get theirs at the same instant, while guests write, or none does.',
  arguments: { '<what>': 'MACHINE/DISK, or a MACHINE', '[file]': 'the overlay of a single disk' },
  options: [
    new Option('--to <dir>', 'of a machine: an overlay for each of its disks there, called DISK.NAME.qcow2'),
    new Option('--name <name>', 'for --to (default: the time)'),
    new Option('--disk <disk=file>', 'of a machine: a disk and its overlay; once for each').argParser(
      (value: string, before: readonly string[] | undefined) => [...(before ?? []), value],
    ),
    new Option('--reuse', 'the overlays are there already, and are used as they are'),
    ...quiesceOptions,
  ],
  examples: [
    ['stillpoint disk snapshot db/root /images/root.monday.qcow2', 'one disk'],
    ['stillpoint disk snapshot db --to /images --name monday', 'all disks of a machine, at one instant'],
    ['stillpoint disk snapshot db --disk root=/a/r.qcow2 --disk data=/b/d.qcow2', 'those that are named'],
  ],
  async run({ args, options, json, socket }) {
    await using daemon = await connectDaemon(socket)
    const { machine, disks } = await wanted(daemon, args, options)
    const made = await daemon.ask('disk-snapshot', { machine, disks, reuse: options.reuse, quiesce: options.quiesce })
    if (json) return made.forEach(one => printJson({ machine, ...one }))
    print(made.map(({ disk, file }) => `${machine}/${disk} is now written to ${file}\n`).join(''))
  },
})

async function wanted(daemon: Daemon, { what, file }: { what: string; file?: string }, { to, name, disk = [] }: Options) {
  if ([file !== undefined, to !== undefined, disk.length > 0].filter(Boolean).length !== 1)
    throw new Misuse('say where the overlays are to be: MACHINE/DISK FILE, MACHINE --to DIR, or MACHINE --disk DISK=FILE')
  if (name !== undefined && to === undefined) throw new Misuse('--name is for --to')
  if (file !== undefined) {
    const named = namedDisk(what)
    return { machine: named.machine, disks: [{ disk: named.disk, file: resolve(file) }] }
  }
  if (what.includes('/')) throw new Misuse(`${what} is a single disk: say its overlay's file behind it`)
  if (to !== undefined) {
    const machine = (await daemon.ask('query-machines')).find(({ name }) => name === what)
    if (!machine) throw new NotFound(`there is no machine '${what}'; 'stillpoint disk list' shows those there are`)
    const ending = `${name ?? timeName()}.qcow2`
    return {
      machine: what,
      disks: machine.disks.map(({ name }) => ({ disk: name, file: resolve(join(to, `${name}.${ending}`)) })),
    }
  }
  const disks = disk.map(text => {
    const [, diskName, path] = /^([^=]+)=(.+)$/.exec(text) ?? []
    if (diskName === undefined || path === undefined) throw new Misuse(`--disk must be DISK=FILE, not '${text}'`)
    return { disk: diskName, file: resolve(path) }
  })
  return { machine: what, disks }
}
