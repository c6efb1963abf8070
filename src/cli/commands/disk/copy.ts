// stillpoint disk copy: libvirt's block copy.

import { resolve } from 'node:path'
import { Option } from 'commander'
import { connectDaemon } from '../../connect.ts'
import { verb } from '../../define.ts'
import { Misuse } from '../../failure.ts'
import { amount, followJob, tellJob } from './follow.ts'
import { DISK, namedDisk, sizeOf, speedOption } from './named-disk.ts'

interface Options {
  readonly shallow?: boolean
  readonly reuseExternal?: boolean
  readonly raw?: boolean
  readonly format?: string
  readonly wait?: boolean
  readonly pivot?: boolean
  readonly finish?: boolean
  readonly speed?: string
  readonly granularity?: string
  readonly writeBlocking?: boolean
}

export const copy = verb<{ disk: string; file: string }, Options>({
  name: 'copy',
  summary: 'copy a disk to another image while its guest goes on',
  details:
    'When all is copied the two are kept the same until `disk pivot` moves the guest to the copy, or `disk abort` leaves it as it is at that instant. The daemon does all of it: whoever waits here may go away.',
  arguments: { '<disk>': DISK, '<file>': 'the copy: a file that is not there yet, or a block device' },
  options: [
    new Option('--shallow', "copy the disk's own image only; what is behind it is behind the copy too"),
    new Option('--reuse-external', 'the image is there already, with what is behind it, and is used as it is'),
    new Option('--raw', 'the copy is a raw image'),
    new Option('--format <format>', "of the copy (default: the disk's own)").choices(['raw', 'qcow2']),
    new Option('--wait', 'until the copy is ready; with --pivot or --finish until that is done'),
    new Option('--pivot', 'move the guest to the copy as soon as it is ready'),
    new Option('--finish', 'leave the copy as it is as soon as it is ready'),
    speedOption(),
    new Option('--granularity <bytes>', "what is copied again when a byte of it is written (default: the copy's clusters)"),
    new Option('--write-blocking', 'a guest waits until the copy has what it writes as well'),
  ],
  examples: [
    ['stillpoint disk copy db/root /new/root.qcow2 --wait --pivot', 'the disk moves to another place'],
    ['stillpoint disk copy db/root /new/top.qcow2 --shallow --reuse-external --pivot', 'onto a chain that was made there before'],
    ['stillpoint disk copy db/root /copies/root.raw --raw --wait --finish', 'a whole copy of one instant'],
  ],
  async run({ args: { disk, file }, options, json, socket }) {
    const { pivot, finish, raw, format, wait, writeBlocking } = options
    if (pivot && finish) throw new Misuse('--pivot moves the guest to the copy and --finish does not: say one of them')
    if (raw && format === 'qcow2') throw new Misuse('--raw and --format qcow2 contradict each other: say one of them')
    const atReady = pivot ? 'pivot' : finish ? 'finish' : 'wait'
    const named = namedDisk(disk)
    const args = {
      ...named,
      file: resolve(file),
      shallow: options.shallow,
      reuse: options.reuseExternal,
      format: raw ? 'raw' : format,
      speed: sizeOf('--speed', options.speed),
      granularity: sizeOf('--granularity', options.granularity),
      'copy-mode': writeBlocking ? 'write-blocking' : undefined,
      'at-ready': atReady,
    }
    await using daemon = await connectDaemon(socket)
    const begun = await daemon.ask('disk-copy', args)
    if (!wait) return tellJob(begun, json, `${disk} is being copied to ${args.file}; ${next[atReady](disk)}`)
    const job = await followJob(daemon, begun, { untilOver: atReady !== 'wait' })
    const done = `${args.file} is a copy of ${disk}`
    const sentence = pivot ? `${disk} is now in ${args.file}` : finish ? done : `${done} (${amount(job)}); ${next.wait(disk)}`
    tellJob(job, json, sentence)
  },
})

const next = {
  wait: (disk: string) => `when it is ready: stillpoint disk pivot ${disk}, or stillpoint disk abort ${disk}`,
  pivot: () => 'the guest moves there when it is ready',
  finish: () => 'it is left as it is when it is ready',
}
