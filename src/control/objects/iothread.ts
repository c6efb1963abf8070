// QMP's iothread: QEMU gives disks threads by it. Here there are none to give, and it is taken so that scripts run unchanged.

import { InvalidParameter } from '../../base/errors.ts'
import { parseArguments } from '../arguments.ts'
import { z } from 'zod'
import { int64 } from '../qapi-type.ts'
import { objectType } from './object-type.ts'

const DEFAULTS = {
  'poll-max-ns': 32768,
  'poll-grow': 0,
  'poll-shrink': 0,
  'aio-max-batch': 0,
  'thread-pool-min': 0,
  'thread-pool-max': 64,
}

const properties = Object.fromEntries(Object.keys(DEFAULTS).map(name => [name, int64.optional()])) as Record<
  keyof typeof DEFAULTS,
  ReturnType<typeof int64.optional>
>

export const iothreadObject = objectType({
  name: 'iothread',
  properties,
  defaults: DEFAULTS,
  set: Object.fromEntries(
    Object.entries(properties).map(([name, schema]) => [
      name,
      (_object, wanted, properties) => {
        const { [name]: value } = parseArguments(z.strictObject({ [name]: schema }), { [name]: wanted })
        checkRange(name, value)
        properties[name] = value
      },
    ]),
  ),
  create(properties) {
    for (const [name, value] of Object.entries(properties)) checkRange(name, value)
    const { 'thread-pool-min': least, 'thread-pool-max': most } = { ...DEFAULTS, ...properties }
    if (least > most || most === 0) throw new InvalidParameter('bad thread-pool-min/thread-pool-max values')
    return properties
  },
})

function checkRange(name: string, value: number | undefined) {
  if (value !== undefined && value < 0) throw new InvalidParameter(`${name} value must be in range [0, 9223372036854775807]`)
}
