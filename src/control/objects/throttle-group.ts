// QMP's throttle-group: limits that the throttle filters which name it share.

import { z } from 'zod'
import { checked } from '../../base/checked.ts'
import { ThrottleGroup } from '../../filters/throttle-group.ts'
import { throttleLimits, throttleMembers } from '../../filters/throttle-limits.ts'
import { objectType } from './object-type.ts'

/** The same limits, one by one, as QEMU had them before there was `limits`. */
const oneByOne = Object.fromEntries(Object.entries(throttleMembers).map(([name, member]) => [`x-${name}`, member]))

export const throttleGroupObject = objectType({
  name: 'throttle-group',
  properties: { limits: z.strictObject(throttleMembers).optional(), ...oneByOne },
  create({ limits, ...others }) {
    const given = Object.entries(others).map(([name, value]) => [name.slice('x-'.length), value])
    return new ThrottleGroup(checked(throttleLimits, { ...limits, ...Object.fromEntries(given) }))
  },
})
