// stillpoint disk pivot: the guest goes on in the copy.

import { connectDaemon } from '../../connect.ts'
import { verb } from '../../define.ts'
import { tellJob } from './follow.ts'
import { DISK, namedDisk } from './named-disk.ts'

export const pivot = verb<{ disk: string }>({
  name: 'pivot',
  summary: 'move a disk to its copy, or to what it was committed to, when that is ready',
  details:
    'Checkpoints stay what they are, and a restart of the daemon finds the disk there. Refused while there is still something to copy.',
  arguments: { '<disk>': DISK },
  examples: [['stillpoint disk pivot db/root', 'the guest goes on in the copy']],
  async run({ args: { disk }, json, socket }) {
    const named = namedDisk(disk)
    await using daemon = await connectDaemon(socket)
    const job = await daemon.ask('disk-pivot', named)
    tellJob(job, json, `${disk} is now in ${job.target ?? 'the image that it was committed to'}`)
  },
})
