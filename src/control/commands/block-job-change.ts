// QMP's block-job-change (QEMU 8.2): a mirror that copies behind its guests has them wait for the target from now on.

import { z } from 'zod'
import { InvalidParameter } from '../../base/errors.ts'
import { command } from '../command.ts'
import { ofEveryVariant } from '../qapi-type.ts'

const common = ofEveryVariant({ id: z.string() })

export const blockJobChange = command({
  name: 'block-job-change',
  summary: 'Has a mirror that runs copy in another way.',
  arguments: z.discriminatedUnion('type', [
    z.strictObject({
      type: z.literal('mirror'),
      ...common,
      'copy-mode': z.enum(['background', 'write-blocking']).describe('background: only where it is that already'),
    }),
    z.strictObject({ type: z.literal(['backup', 'commit', 'stream', 'create']), ...common }),
  ]),
  async run(args, { jobs }) {
    const job = jobs.getBlockJob(args.id)
    job.checkVerb('change')
    if (args.type !== 'mirror' || job.type !== 'mirror') throw new InvalidParameter('Job type does not support change')
    await job.change(args['copy-mode'])
  },
})
