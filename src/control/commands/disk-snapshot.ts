// disk-snapshot: from one instant on, what is written to disks of a machine goes to overlays.

import { z } from 'zod'
import { snapshotDisks } from '../../machines/disk-snapshot.ts'
import { operate } from '../../machines/quiesce/operate.ts'
import { command } from '../command.ts'
import { filenameOf } from '../node-filename.ts'
import { quiesce } from '../quiesce-argument.ts'

const snapshot = z.strictObject({ disk: z.string(), file: z.string() })

export const diskSnapshot = command({
  name: 'disk-snapshot',
  summary: 'Puts overlays over disks of a machine, all at one instant or none.',
  arguments: z.strictObject({
    machine: z.string(),
    disks: z.array(snapshot).describe('`disk` and the `file` of its overlay'),
    reuse: z.boolean().default(false).describe('The overlays are there, and are used as they are'),
    quiesce,
  }),
  returns: z.array(snapshot),
  turn: false,
  async run({ machine: name, disks, reuse, quiesce }, context) {
    const { machine } = context.machines.get(name)
    const wanted = disks.map(({ disk, file }) => ({ disk: machine.disk(disk), file }))
    await operate({
      turns: context.turns,
      machine,
      operation: { kind: 'snapshot' },
      quiesce,
      work: () => snapshotDisks({ ...context, filenameOf }, machine, wanted, { reuse, quiesce }),
      outcome: consistency => ({ consistency }),
    })
    return disks
  },
})
