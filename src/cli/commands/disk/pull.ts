// stillpoint disk pull: libvirt's block pull.

import { resolve } from 'node:path'
import { Option } from 'commander'
import { connectDaemon } from '../../connect.ts'
import { verb } from '../../define.ts'
import { followJob, tellJob } from './follow.ts'
import { DISK, namedDisk, sizeOf, speedOption } from './named-disk.ts'

export const pull = verb<{ disk: string }, { base?: string; wait?: boolean; speed?: string }>({
  name: 'pull',
  summary: "copy into a disk's image what shows through it, so that what is behind it is not needed any more",
  arguments: { '<disk>': DISK },
  options: [
    new Option('--base <file>', 'the image that stays behind it (default: none does)'),
    new Option('--wait', 'until it is done'),
    speedOption(),
  ],
  examples: [
    ['stillpoint disk pull db/root --wait', "the disk's image stands alone"],
    ['stillpoint disk pull db/root --base /images/golden.qcow2', 'what is between goes'],
  ],
  async run({ args: { disk }, options: { base, wait, speed }, json, socket }) {
    const args = { ...namedDisk(disk), base: base && resolve(base), speed: sizeOf('--speed', speed) }
    await using daemon = await connectDaemon(socket)
    const begun = await daemon.ask('disk-pull', args)
    if (!wait) return tellJob(begun, json, `${disk} is being pulled; its end shows: stillpoint disk list --jobs`)
    tellJob(
      await followJob(daemon, begun, { untilOver: true }),
      json,
      `${disk} needs no other image${base ? ` but ${base} and those behind it` : ''}`,
    )
  },
})
