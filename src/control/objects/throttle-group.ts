// QMP's throttle-group: limits that the throttle filters which name it share.

import { z } from 'zod'
import { checked } from '../../base/checked.ts'
import { InvalidParameter } from '../../base/errors.ts'
import { ThrottleGroup } from '../../filters/throttle-group.ts'
import { throttleLimits, throttleMembers, type ThrottleLimits } from '../../filters/throttle-limits.ts'
import { parseArguments } from '../arguments.ts'
import { objectType } from './object-type.ts'

/** The same limits, one by one, as QEMU had them before there was `limits`. */
const oneByOne = Object.fromEntries(Object.entries(throttleMembers).map(([name, member]) => [`x-${name}`, member]))

const wantedLimits = z.strictObject(throttleMembers).optional()

const tooLate = () => {
  throw new InvalidParameter('Property cannot be set after initialization')
}

const allLimits = (limits: ThrottleLimits): Record<string, number> =>
  Object.fromEntries(
    Object.keys(throttleMembers).map(name => [name, limits[name as keyof ThrottleLimits] ?? (name.endsWith('-length') ? 1 : 0)]),
  )

export const throttleGroupObject = objectType({
  name: 'throttle-group',
  properties: { limits: wantedLimits, ...oneByOne },
  propertyTypes: { limits: 'ThrottleLimits' },
  current(group) {
    const limits = allLimits((group as ThrottleGroup).limits)
    return { limits, ...Object.fromEntries(Object.entries(limits).map(([name, value]) => [`x-${name}`, value])) }
  },
  set: {
    ...Object.fromEntries(Object.keys(oneByOne).map(name => [name, tooLate])),
    limits(group, wanted) {
      const { limits = {} } = parseArguments(z.strictObject({ limits: wantedLimits }), { limits: wanted })
      // What is not said stays as it is.
      const before = allLimits((group as ThrottleGroup).limits)
      ;(group as ThrottleGroup).limits = checked(throttleLimits, { ...before, ...limits })
    },
  },
  create({ limits, ...others }) {
    if (Object.values(others).some(value => Number(value) < 0)) throw new InvalidParameter('Property values cannot be negative')
    const given = Object.entries(others).map(([name, value]) => [name.slice('x-'.length), value])
    return new ThrottleGroup(checked(throttleLimits, { ...limits, ...Object.fromEntries(given) }))
  },
})
