// QMP's qom-list: what there is in the object model.

import { z } from 'zod'
import { command } from '../command.ts'
import { resolvePath } from '../objects/object-model.ts'

export const propertyInfo = z.strictObject({
  name: z.string(),
  type: z.string(),
  description: z.string().optional(),
  'default-value': z.unknown().optional(),
})

export const qomList = command({
  name: 'qom-list',
  summary: 'What is under a path of the object model: the objects of object-add are under /objects, and have properties.',
  arguments: z.strictObject({ path: z.string().describe('As /objects/ID, or ID alone') }),
  returns: z.array(propertyInfo),
  run: ({ path }, { graph }) => [...resolvePath(graph.objects, path).properties],
})
