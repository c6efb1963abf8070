// checkpoint-create: one instant over all disks of a machine, while its guests write.

import { z } from 'zod'
import { checkpointInfo, describeCheckpoint } from '../checkpoint-info.ts'
import { timeName } from '../../base/time.ts'
import { command } from '../command.ts'

export const checkpointCreate = command({
  name: 'checkpoint-create',
  summary: 'Makes a checkpoint of all disks of a machine at one instant. From then on what changes is known.',
  arguments: z.strictObject({
    machine: z.string(),
    name: z.string().optional().describe('By default the time'),
    description: z.string().optional(),
  }),
  returns: checkpointInfo,
  async run({ machine: wanted, name = timeName(), description }, { machines }) {
    const { machine, checkpoints } = machines.get(wanted)
    return describeCheckpoint(machine, checkpoints, await checkpoints.create({ name, description }))
  },
})
