// query-checkpoints: the named instants of machines, oldest first.

import { z } from 'zod'
import { checkpointInfo, describeCheckpoint } from '../checkpoint-info.ts'
import { command } from '../command.ts'

export const queryCheckpoints = command({
  name: 'query-checkpoints',
  summary: 'The checkpoints of all machines or of one, oldest first; with `size`, how much changed since each.',
  arguments: z.strictObject({ machine: z.string().optional(), name: z.string().optional(), size: z.boolean().default(false) }),
  returns: z.array(checkpointInfo),
  run: ({ machine: wanted, name, size }, { machines }) =>
    (wanted === undefined ? machines.list : [machines.get(wanted)]).flatMap(({ machine, checkpoints }) =>
      (name === undefined ? checkpoints.list : [checkpoints.get(name)]).map(checkpoint =>
        describeCheckpoint(machine, checkpoints, checkpoint, { size }),
      ),
    ),
})
