// QMP's object-add.

import { z } from 'zod'
import { InvalidParameter } from '../../base/errors.ts'
import { isWellFormed } from '../../block/node-options.ts'
import { command } from '../command.ts'
import { objectTypes } from '../objects/index.ts'

const id = z.string()
const wanted = objectTypes.map(({ name, properties }) => z.strictObject({ 'qom-type': z.literal(name), id, ...properties }))

export const objectAdd = command({
  name: 'object-add',
  summary: 'Makes what nodes and servers refer to by its id: limits, a secret, TLS credentials.',
  arguments: z.discriminatedUnion('qom-type', [wanted[0]!, ...wanted.slice(1)]),
  async run({ 'qom-type': name, id, ...properties }, { graph: { objects } }) {
    // Our own objects have ids that are none.
    if (!isWellFormed(id)) throw new InvalidParameter("Parameter 'id' expects an identifier")
    objects.checkFree(id)
    const type = objectTypes.find(type => type.name === name)!
    objects.add(id, name, await type.create(properties, objects))
  },
})
