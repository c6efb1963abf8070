// query-disk-jobs: what works on the disks of machines, and how what did last has ended.

import { z } from 'zod'
import { command } from '../command.ts'
import { describeDiskJob, diskJobInfo } from '../disk-job-info.ts'

export const queryDiskJobs = command({
  name: 'query-disk-jobs',
  summary: 'The copies, pulls and commits of disks of machines: for each disk the last one, running or over.',
  arguments: z.strictObject({ machine: z.string().optional(), disk: z.string().optional() }),
  returns: z.array(diskJobInfo),
  turn: false,
  run: ({ machine, disk }, { diskJobs }) =>
    [...diskJobs]
      .filter(job => (machine ?? job.machine.name) === job.machine.name && (disk ?? job.disk.name) === job.disk.name)
      .map(describeDiskJob),
})
