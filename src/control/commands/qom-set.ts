// QMP's qom-set: changes one property of an object.

import { z } from 'zod'
import { command } from '../command.ts'
import type { Json } from '../json.ts'
import { resolvePath } from '../objects/object-model.ts'

export const qomSet = command({
  name: 'qom-set',
  summary: 'Changes a property of an object: the limits of a throttle-group, for all disks in it from now on.',
  arguments: z.strictObject({ path: z.string(), property: z.string(), value: z.unknown() }),
  run: ({ path, property, value }, { graph }) => resolvePath(graph.objects, path).set(property, value as Json),
})
