// disk-pivot: the guest of a disk goes on with the copy, or with the image that the active one was committed to.

import { z } from 'zod'
import { command } from '../command.ts'
import { describeDiskJob, diskArguments, diskJobInfo, findDisk } from '../disk-job-info.ts'

export const diskPivot = command({
  name: 'disk-pivot',
  summary: 'Moves a disk to its copy, or to what its active image was committed to. Refused until that is ready.',
  arguments: z.strictObject(diskArguments),
  returns: diskJobInfo,
  // It takes one for what it changes, and the job that it waits for takes others.
  turn: false,
  async run(args, context) {
    const { machine, disk } = findDisk(args, context)
    await context.diskJobs.pivot(machine, disk)
    return describeDiskJob(context.diskJobs.find(machine, disk)!)
  },
})
