// QMP's qmp_capabilities: the first command of every client.

import { z } from 'zod'
import { command } from '../command.ts'

export const qmpCapabilities = command({
  name: 'qmp_capabilities',
  summary: 'Ends the negotiation: after it other commands are taken, and events are sent.',
  arguments: z.strictObject({
    enable: z
      .array(z.enum(['oob']))
      .default([])
      .describe('What the client wants of what the greeting offers.'),
  }),
  turn: false,
  run: ({ enable }, _context, session) => session.negotiate(enable),
})
