// backup-begin: opens a pull session: frozen views of a machine's disks, as exports.

import { z } from 'zod'
import { InvalidParameter } from '../../base/errors.ts'
import { command } from '../command.ts'
import { uint64 } from '../qapi-type.ts'
import { sessionInfo } from '../session-info.ts'

/** A timer's longest. */
const MAX_EXPIRE_SECONDS = Math.floor((2 ** 31 - 1) / 1000)

export const backupBegin = command({
  name: 'backup-begin',
  summary: 'Freezes a view of all disks of a machine at one instant and exports it, with what changed since a checkpoint.',
  arguments: z.strictObject({
    machine: z.string(),
    mode: z.enum(['pull']),
    name: z.string().optional().describe("The session's; by default the machine's and the time"),
    since: z.string().optional().describe('A checkpoint: offer what changed since as the bitmap backup-DISK'),
    checkpoint: z.string().optional().describe('Make the instant a checkpoint of this name'),
    description: z.string().optional().describe("The checkpoint's"),
    socket: z.string().optional().describe('A unix socket of its own, where the exports are called as the disks'),
    expire: uint64.optional().describe('Seconds after which the session ends by itself'),
  }),
  returns: sessionInfo,
  async run({ machine: wanted, name, since, checkpoint, description, socket, expire }, { machines, backups }) {
    if (expire !== undefined && (expire < 1 || expire > MAX_EXPIRE_SECONDS))
      throw new InvalidParameter(`Parameter 'expire' expects 1 to ${MAX_EXPIRE_SECONDS} seconds`)
    const { machine, checkpoints } = machines.get(wanted)
    const expireMs = expire && expire * 1000
    const session = await backups.beginPull({ machine, checkpoints, name, since, checkpoint, description, socket, expireMs })
    return session.info()
  },
})
