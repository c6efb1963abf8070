// disk-pull: a disk's image gets what shows through it from those behind, which are then not needed any more.

import { z } from 'zod'
import { command } from '../command.ts'
import { describeDiskJob, diskArguments, diskJobInfo, findDisk } from '../disk-job-info.ts'
import { int64 } from '../qapi-type.ts'
import { blockStream } from './block-stream.ts'

export const diskPull = command({
  name: 'disk-pull',
  summary: "Begins to copy into a disk's image what shows through it from the images behind, and takes those out of the chain.",
  arguments: z.strictObject({
    ...diskArguments,
    base: z.string().optional().describe('The image that stays behind it; by default none does'),
    speed: int64.optional().describe('Bytes a second; 0: no limit'),
  }),
  returns: diskJobInfo,
  async run(args, context, session) {
    const { machine, disk } = findDisk(args, context)
    const { diskJobs } = context
    diskJobs.checkFree(machine, disk)
    const jobId = diskJobs.idFor('pull', machine, disk)
    const base = args.base !== undefined && { base: args.base }
    await blockStream.run({ 'job-id': jobId, device: disk.node.name, ...base, speed: args.speed }, context, session)
    return describeDiskJob(diskJobs.started(jobId, { machine, disk, type: 'pull' }))
  },
})
