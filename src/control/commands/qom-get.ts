// QMP's qom-get: one property of an object.

import { z } from 'zod'
import { command } from '../command.ts'
import { resolvePath } from '../objects/object-model.ts'

export const qomGet = command({
  name: 'qom-get',
  summary: 'A property of an object, as it is now.',
  arguments: z.strictObject({ path: z.string(), property: z.string() }),
  returns: z.unknown(),
  run: ({ path, property }, { graph }) => resolvePath(graph.objects, path).get(property),
})
