// QMP's object-del.

import { z } from 'zod'
import { command } from '../command.ts'

export const objectDel = command({
  name: 'object-del',
  summary: 'Takes away an object that nobody uses.',
  arguments: z.strictObject({ id: z.string() }),
  run: ({ id }, { graph }) => graph.objects.delete(id),
})
