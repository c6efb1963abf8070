// QMP's query-qmp-schema.

import { z } from 'zod'
import { command } from '../command.ts'
import { eventTypes } from '../event-types.ts'
import { metaTypes, schemaInfo } from '../schema-info.ts'

export const queryQmpSchema = command({
  name: 'query-qmp-schema',
  summary: 'Describes every command and event, for programs that ask before they use one.',
  returns: z.array(z.looseObject({ name: z.string(), 'meta-type': z.enum(metaTypes) })),
  turn: false,
  run: (_, _context, session) => schemaInfo(session.commands, eventTypes),
})
