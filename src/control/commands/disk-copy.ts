// disk-copy: begins a copy of a machine's disk to another image, with the flags of libvirt's block copy.

import { z } from 'zod'
import { InvalidParameter } from '../../base/errors.ts'
import { startCopy } from '../../machines/disk-copy.ts'
import { command } from '../command.ts'
import { describeDiskJob, diskArguments, diskJobInfo, findDisk } from '../disk-job-info.ts'
import { int64, uint32 } from '../qapi-type.ts'

export const diskCopy = command({
  name: 'disk-copy',
  summary: 'Begins to copy a disk to another image while its guest goes on; when it is ready the guest can be moved there.',
  arguments: z.strictObject({
    ...diskArguments,
    file: z
      .string()
      .optional()
      .describe('The copy: a file that is made, or with `reuse` the image that is there; or a block device'),
    shallow: z.boolean().default(false).describe("Only the disk's own image; what is behind it is behind the copy too"),
    reuse: z.boolean().default(false).describe('The image is there, and is used as it is'),
    format: z.enum(['raw', 'qcow2']).optional().describe("Of the copy; by default the disk's own, and raw on a block device"),
    'node-name': z.string().optional().describe("The copy's; without `file` a node that is open and that nobody uses"),
    speed: int64.optional().describe('Bytes a second; 0: no limit'),
    granularity: uint32.optional().describe('Bytes that are copied again when one of them is written'),
    'copy-mode': z
      .enum(['background', 'write-blocking'])
      .optional()
      .describe('write-blocking: a guest waits until the copy has what it writes as well'),
    'target-timeout': uint32
      .optional()
      .describe(
        "Of copy-mode write-blocking: seconds that a guest's write waits for the target; by default scratch.timeout; 0: for ever",
      ),
    'at-ready': z
      .enum(['wait', 'pivot', 'finish'])
      .default('wait')
      .describe('pivot: the guest moves to the copy by itself; finish: the copy stays as it is at that instant'),
  }),
  returns: diskJobInfo,
  async run(args, context) {
    const { machine, disk } = findDisk(args, context)
    if (args.file === undefined && args['node-name'] === undefined) throw new InvalidParameter("Parameter 'file' is missing")
    if (args.file === undefined && (args.reuse || args.format))
      throw new InvalidParameter("'reuse' and 'format' are for a 'file'")
    if (args.file === '') throw new InvalidParameter('the file of the copy must not be empty')
    const started = await startCopy(context, {
      machine,
      disk,
      filename: args.file,
      shallow: args.shallow,
      reuse: args.reuse,
      format: args.format,
      nodeName: args['node-name'],
      speed: args.speed,
      granularity: args.granularity,
      copyMode: args['copy-mode'],
      targetTimeout: args['target-timeout'],
      atReady: ({ wait: undefined, pivot: 'complete', finish: 'leave' } as const)[args['at-ready']],
    })
    return describeDiskJob(started)
  },
})
