// QMP's query-commands.

import { z } from 'zod'
import { command } from '../command.ts'

export const queryCommands = command({
  name: 'query-commands',
  summary: 'The names of all commands.',
  returns: z.array(z.strictObject({ name: z.string() })),
  turn: false,
  run: (_, _context, session) => session.commands.map(({ name }) => ({ name })),
})
