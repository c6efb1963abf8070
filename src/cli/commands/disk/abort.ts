// stillpoint disk abort: what works on a disk ends, and the disk stays where it is.

import { Option } from 'commander'
import { connectDaemon } from '../../connect.ts'
import { verb } from '../../define.ts'
import { tellJob } from './follow.ts'
import { DISK, namedDisk } from './named-disk.ts'

export const abort = verb<{ disk: string }, { async?: boolean }>({
  name: 'abort',
  summary: 'end the copy, pull or commit of a disk, which stays as it is',
  details: 'A copy that was ready is left whole, as the disk is at that instant. One that was not is of no use; its file stays.',
  arguments: { '<disk>': DISK },
  options: [new Option('--async', 'do not wait for the end')],
  examples: [['stillpoint disk abort db/root', 'the guest goes on where it is']],
  async run({ args: { disk }, options, json, socket }) {
    const named = namedDisk(disk)
    await using daemon = await connectDaemon(socket)
    const job = await daemon.ask('disk-abort', { ...named, async: options.async })
    const left = job.target !== undefined && job.over && !job.cancelled ? `; ${job.target} is a copy of it` : ''
    tellJob(job, json, job.over ? `nothing works on ${disk} any more${left}` : `the ${job.type} of ${disk} is told to end`)
  },
})
