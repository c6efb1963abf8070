// machine-thaw: what the daemon tries again and again by itself, now.

import { z } from 'zod'
import { command } from '../command.ts'

export const machineThaw = command({
  name: 'machine-thaw',
  summary: 'Thaws the guest of a machine now: one that could not be thawed, or whatever else has frozen it.',
  arguments: z.strictObject({ machine: z.string() }),
  run: ({ machine }, { machines }) => machines.get(machine).machine.guest.thaw(),
})
