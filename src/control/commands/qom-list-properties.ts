// QMP's qom-list-properties.

import { z } from 'zod'
import { command } from '../command.ts'
import { propertiesOf } from '../objects/object-model.ts'
import { propertyInfo } from './qom-list.ts'

export const qomListProperties = command({
  name: 'qom-list-properties',
  summary: 'The properties that objects of a type have.',
  arguments: z.strictObject({ typename: z.string() }),
  returns: z.array(propertyInfo),
  run: ({ typename }) => [...propertiesOf(typename)],
})
