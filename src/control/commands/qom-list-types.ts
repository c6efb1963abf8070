// QMP's qom-list-types.

import { z } from 'zod'
import { command } from '../command.ts'
import { qomTypes } from '../objects/object-model.ts'

export const qomListTypes = command({
  name: 'qom-list-types',
  summary: 'The types of objects that object-add can make.',
  arguments: z.strictObject({
    implements: z.string().optional().describe('user-creatable: all of them; or the type above'),
    abstract: z.boolean().optional().describe('Accepted: types that nothing can be made of are not shown'),
  }),
  returns: z.array(z.strictObject({ name: z.string(), abstract: z.boolean().optional(), parent: z.string().optional() })),
  run: ({ implements: wanted = 'user-creatable' }) =>
    qomTypes().filter(({ name, parent }) => ['user-creatable', 'object', name, parent].includes(wanted)),
})
