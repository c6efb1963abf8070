// backup-estimate: what a push would read and store, were it begun now.

import { z } from 'zod'
import { command } from '../command.ts'
import { uint64 } from '../qapi-type.ts'

export const backupEstimate = command({
  name: 'backup-estimate',
  summary: 'Says what a push of a machine would read, and about what it would store, were it begun now. Nothing is frozen.',
  arguments: z.strictObject({
    machine: z.string(),
    repository: z.string().describe('Where to push to, as the configuration calls it'),
    since: z.string().optional().describe('As of backup-begin: auto (the default), full, or a checkpoint'),
  }),
  returns: z.strictObject({
    machine: z.string(),
    repository: z.string(),
    disks: z.array(
      z.strictObject({
        disk: z.string(),
        size: uint64,
        /** How it would be read. */
        read: z.enum(['full', 'bitmap', 'compare']),
        why: z.string(),
        /** Bytes that would be read. */
        bytes: uint64,
        /** Bytes that would be stored at most, as disks were compressed before; left out where nobody can tell. */
        stored: uint64.optional(),
      }),
    ),
  }),
  turn: false,
  async run({ machine: wanted, repository, since = 'auto' }, { machines, backups }) {
    const { machine, checkpoints } = machines.get(wanted)
    const disks = await backups.estimatePush({ machine, checkpoints, repository, since })
    return {
      machine: machine.name,
      repository,
      disks: disks.map(({ mode, read, ...disk }) => ({ ...disk, read: mode, bytes: read })),
    }
  },
})
