// QMP's iothread: QEMU gives disks threads by it. Here there are none to give, and it is taken so that scripts run unchanged.

import { int64 } from '../qapi-type.ts'
import { objectType } from './object-type.ts'

export const iothreadObject = objectType({
  name: 'iothread',
  properties: {
    'poll-max-ns': int64.optional(),
    'poll-grow': int64.optional(),
    'poll-shrink': int64.optional(),
    'aio-max-batch': int64.optional(),
  },
  create: properties => properties,
})
