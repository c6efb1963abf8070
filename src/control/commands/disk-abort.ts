// disk-abort: ends what works on a disk, which stays as it is.

import { z } from 'zod'
import { command } from '../command.ts'
import { describeDiskJob, diskArguments, diskJobInfo, findDisk } from '../disk-job-info.ts'

export const diskAbort = command({
  name: 'disk-abort',
  summary:
    'Ends the copy, pull or commit of a disk, which stays as it is. A copy that is ready is left as it is at that instant.',
  arguments: z.strictObject({
    ...diskArguments,
    async: z.boolean().default(false).describe('Answer at once; events tell when it has ended'),
  }),
  returns: diskJobInfo,
  // It takes one for what it changes, and the job that it waits for takes others.
  turn: false,
  async run(args, context) {
    const { machine, disk } = findDisk(args, context)
    await context.diskJobs.abort(machine, disk, { wait: !args.async })
    return describeDiskJob(context.diskJobs.find(machine, disk)!)
  },
})
