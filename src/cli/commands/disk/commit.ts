// stillpoint disk commit: libvirt's block commit.

import { resolve } from 'node:path'
import { Option } from 'commander'
import { connectDaemon } from '../../connect.ts'
import { verb } from '../../define.ts'
import { Misuse } from '../../failure.ts'
import { followJob, tellJob } from './follow.ts'
import { DISK, namedDisk, sizeOf, speedOption } from './named-disk.ts'

interface Options {
  readonly top?: string
  readonly base?: string
  readonly active?: boolean
  readonly pivot?: boolean
  readonly wait?: boolean
  readonly speed?: string
}

export const commit = verb<{ disk: string }, Options>({
  name: 'commit',
  summary: "copy what images of a disk's chain hold into one below them, and take them out of the chain",
  details:
    'The image that is written to takes --active, and then ends as a copy does: by `disk pivot` when it is ready, or by itself with --pivot. Files of images that are taken out stay.',
  arguments: { '<disk>': DISK },
  options: [
    new Option('--top <file>', 'the topmost of the images (default: the one that is written to)'),
    new Option('--base <file>', 'the image to copy to (default: the last of the chain)'),
    new Option('--active', 'the image that is written to is among them'),
    new Option('--pivot', 'with --active: move the guest to the base as soon as that is ready'),
    new Option('--wait', 'until it is done, or ready'),
    speedOption(),
  ],
  examples: [
    ['stillpoint disk commit db/root --active --pivot --wait', 'the end of a snapshot: all goes back into the base'],
    ['stillpoint disk commit db/root --top /images/monday.qcow2 --base /images/root.qcow2', 'an older snapshot goes'],
  ],
  async run({ args: { disk }, options: { top, base, active, pivot, wait, speed }, json, socket }) {
    if (pivot && !active) throw new Misuse('--pivot is for a commit of the image that is written to: say --active too')
    const args = {
      ...namedDisk(disk),
      top: top && resolve(top),
      base: base && resolve(base),
      active,
      pivot,
      speed: sizeOf('--speed', speed),
    }
    await using daemon = await connectDaemon(socket)
    const begun = await daemon.ask('disk-commit', args)
    const next = active && !pivot ? `; when it is ready: stillpoint disk pivot ${disk}` : ''
    if (!wait) return tellJob(begun, json, `${disk} is being committed${next}`)
    const job = await followJob(daemon, begun, { untilOver: !active || pivot === true })
    tellJob(job, json, job.over ? `${disk} is committed` : `all of ${disk} is in the base${next}`)
  },
})
