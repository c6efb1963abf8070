// checkpoint-create: one instant over all disks of a machine, while its guests write.

import { z } from 'zod'
import { checkpointInfo, describeCheckpoint } from '../checkpoint-info.ts'
import { timeName } from '../../base/time.ts'
import { operate } from '../../machines/quiesce/operate.ts'
import { command } from '../command.ts'
import { quiesce } from '../quiesce-argument.ts'

export const checkpointCreate = command({
  name: 'checkpoint-create',
  summary: 'Makes a checkpoint of all disks of a machine at one instant. From then on what changes is known.',
  arguments: z.strictObject({
    machine: z.string(),
    name: z.string().optional().describe('By default the time'),
    description: z.string().optional(),
    quiesce,
  }),
  returns: checkpointInfo,
  turn: false,
  async run({ machine: wanted, name = timeName(), description, quiesce }, { machines, turns }) {
    const { machine, checkpoints } = machines.get(wanted)
    return operate({
      turns,
      machine,
      operation: { kind: 'checkpoint', name },
      quiesce,
      work: async () => describeCheckpoint(machine, checkpoints, await checkpoints.create({ name, description, quiesce })),
      outcome: ({ consistency }) => ({ consistency, checkpoint: name }),
    })
  },
})
