// disk-commit: images of a disk's chain go into one below them.

import { z } from 'zod'
import { InvalidParameter } from '../../base/errors.ts'
import { backingOf } from '../../block/chain.ts'
import { command } from '../command.ts'
import { describeDiskJob, diskArguments, diskJobInfo, findDisk } from '../disk-job-info.ts'
import { filenameOf } from '../node-filename.ts'
import { int64 } from '../qapi-type.ts'
import { startBlockCommit } from './block-commit.ts'

export const diskCommit = command({
  name: 'disk-commit',
  summary: "Begins to copy what images of a disk's chain hold into one below them, and takes them out of the chain.",
  arguments: z.strictObject({
    ...diskArguments,
    top: z.string().optional().describe('The topmost of the images; by default the one that is written, which takes `active`'),
    base: z.string().optional().describe('The image to copy to; by default the last of the chain'),
    active: z
      .boolean()
      .default(false)
      .describe('The image that is written is among them: when it is ready the disk can be pivoted'),
    pivot: z.boolean().default(false).describe('With `active`: pivot by itself when it is ready'),
    speed: int64.optional().describe('Bytes a second; 0: no limit'),
  }),
  returns: diskJobInfo,
  async run(args, context) {
    const { machine, disk, id } = findDisk(args, context)
    const { diskJobs } = context
    diskJobs.checkFree(machine, disk)
    const { node } = disk
    const isActive = args.top === undefined || args.top === (await filenameOf(node))
    if (isActive && !args.active)
      throw new InvalidParameter(`commit of '${id}' active layer requires active flag: say --active, or name another with --top`)
    if (!isActive && args.active) throw new InvalidParameter(`active commit requested but '${args.top}' is not active`)
    if (args.pivot && !args.active) throw new InvalidParameter('only an active commit ends by a pivot')
    if (!backingOf(node)) throw new InvalidParameter(`disk '${id}' has no image behind it to commit to`)
    const jobId = diskJobs.idFor('commit', machine, disk)
    const named = {
      ...(!isActive && { top: args.top }),
      ...(args.base !== undefined && { base: args.base }),
    }
    await startBlockCommit({ 'job-id': jobId, device: node.name, ...named, speed: args.speed }, context, {
      atReady: args.pivot ? 'complete' : undefined,
      closesTop: true,
    })
    return describeDiskJob(diskJobs.started(jobId, { machine, disk, type: 'commit' }))
  },
})
