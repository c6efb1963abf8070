// query-machines: what is backed up together, and how it is named everywhere.

import { z } from 'zod'
import { command } from '../command.ts'
import { uint64 } from '../qapi-type.ts'

const disk = z.strictObject({
  name: z.string(),
  node: z.string(),
  image: z.string().optional(),
  size: uint64,
  'read-only': z.boolean(),
  export: z.string(),
  clients: uint64,
})

const machine = z.strictObject({
  name: z.string(),
  disks: z.array(disk),
  checkpoints: uint64,
  current: z.string().optional(),
  sessions: z.array(z.string()),
  /** Its guest could not be thawed so far: since when, and why. */
  frozen: z.strictObject({ since: z.string(), reason: z.string() }).optional(),
})

export const queryMachines = command({
  name: 'query-machines',
  summary: 'The machines, their disks and exports, how many checkpoints they have and which backup sessions are open.',
  returns: z.array(machine),
  run: (_, { machines, backups, exports }) =>
    machines.list.map(({ machine: { name, disks, guest }, checkpoints }) => ({
      name,
      disks: disks.map(({ name: disk, node }) => ({
        name: disk,
        node: node.name,
        image: node.filename,
        size: node.size,
        'read-only': node.readOnly,
        export: `${name}/${disk}`,
        clients: exports.usersOf(`${name}/${disk}`),
      })),
      checkpoints: checkpoints.list.length,
      current: checkpoints.current?.name,
      sessions: [...backups].filter(session => session.parts.machine.name === name).map(session => session.name),
      frozen: guest.stuck && { ...guest.stuck },
    })),
})
