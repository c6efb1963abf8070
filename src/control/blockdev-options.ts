// The arguments of blockdev-add: a union over all drivers and filters, made of their own schemas (QMP's BlockdevOptions).
//
// What a client leaves out stays out: whether a default or the parent's value then holds is the graph's business.

import { z } from 'zod'
import type { AnyDriver, NodeOptions } from '../block/driver.ts'
import { genericOptions } from '../block/node-options.ts'
import { drivers } from '../drivers/index.ts'
import { filters } from '../filters/index.ts'
import { restorePointDriver } from '../restore/restore-point.ts'
import { named } from './qapi-type.ts'

/** A node: all that opens it, and what is below it. */
export const blockdevOptions = z.lazy(() => byDriver) as z.ZodType as z.ZodType<NodeOptions>

/** A node that is there, by its name, or one that is opened for its parent. */
export const blockdevRef = named('BlockdevRef', z.union([blockdevOptions, z.string()]))

/** `null`: none, whatever the image says. */
export const blockdevRefOrNull = named('BlockdevRefOrNull', z.union([blockdevOptions, z.string(), z.null()]))

const { driver: _driver, ...ofEveryNode } = genericOptions.shape
const common = withoutDefaults(ofEveryNode)

const [first, ...others] = [...drivers, restorePointDriver, ...filters].map(optionsOf)
const byDriver = z.discriminatedUnion('driver', [first!, ...others])

function optionsOf({ name, options, children }: AnyDriver) {
  const references = Object.entries(children).map(([child, { role, optional }]) => {
    const reference = role === 'backing' ? blockdevRefOrNull : blockdevRef
    return [child, optional ? reference.optional() : reference] as const
  })
  return z.strictObject({
    driver: z.literal(name),
    ...common,
    ...Object.fromEntries(references),
    ...withoutDefaults((options as z.ZodType as z.ZodObject).shape),
  })
}

export function withoutDefaults(shape: z.ZodRawShape): z.ZodRawShape {
  return Object.fromEntries(Object.entries(shape).map(([name, member]) => [name, withoutDefault(member as z.ZodType)]))
}

function withoutDefault(member: z.ZodType) {
  return member instanceof z.ZodDefault || member instanceof z.ZodPrefault ? (member.unwrap() as z.ZodType).optional() : member
}
