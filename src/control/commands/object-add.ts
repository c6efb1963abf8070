// QMP's object-add.

import { z } from 'zod'
import { Fault, InvalidParameter } from '../../base/errors.ts'
import { isWellFormed } from '../../block/node-options.ts'
import type { Objects } from '../../block/objects.ts'
import { parseArguments } from '../arguments.ts'
import { command } from '../command.ts'
import { parseOption } from '../keyval.ts'
import { objectTypes } from '../objects/index.ts'
import { qapiTypeOf } from '../qapi-type.ts'

const id = z.string()
const wanted = objectTypes.map(({ name, properties }) => z.strictObject({ 'qom-type': z.literal(name), id, ...properties }))

const schema = z.discriminatedUnion('qom-type', [wanted[0]!, ...wanted.slice(1)])

export const objectAdd = command({
  name: 'object-add',
  summary: 'Makes what nodes and servers refer to by its id: limits, a secret, TLS credentials.',
  arguments: schema,
  run: (wanted, { graph: { objects } }) => addObject(wanted, objects),
})

/** Also for command lines without a daemon. */
async function addObject({ 'qom-type': name, id, ...properties }: z.output<typeof schema>, objects: Objects) {
  // Our own objects have ids that are none.
  if (!isWellFormed(id)) throw new InvalidParameter("Parameter 'id' expects an identifier")
  objects.checkFree(id)
  const type = objectTypes.find(type => type.name === name)!
  objects.add(id, name, await type.create(properties, objects), properties)
}

/** As an `--object` of a command line has it: key=value,... or JSON. @throws InvalidParameter that says which it was */
export async function addObjectByText(text: string, objects: Objects) {
  try {
    await addObject(parseArguments(schema, parseOption(text, qapiTypeOf(schema), 'qom-type')), objects)
  } catch (error) {
    if (!(error instanceof Fault)) throw error
    throw new InvalidParameter(`--object ${text}: ${error.message}`, { cause: error })
  }
}
