// The arguments of blockdev-create: a union over all drivers that make images, of their own schemas (QMP's BlockdevCreateOptions).

import { z } from 'zod'
import type { AnyDriver, ImageCreation, NodeOptions } from '../block/driver.ts'
import { drivers } from '../drivers/index.ts'
import { blockdevRef, withoutDefaults } from './blockdev-options.ts'

const [first, ...others] = drivers.flatMap(driver => (driver.creation ? optionsOf(driver, driver.creation) : []))

export const blockdevCreateOptions = z.discriminatedUnion('driver', [first!, ...others]) as z.ZodType as z.ZodType<NodeOptions>

function optionsOf({ name }: AnyDriver, { options, files }: ImageCreation<unknown>) {
  const references = Object.entries(files).map(([file, { optional }]) => [file, optional ? blockdevRef.optional() : blockdevRef])
  return z.strictObject({
    driver: z.literal(name),
    ...(Object.fromEntries(references) as z.ZodRawShape),
    ...withoutDefaults((options as z.ZodObject).shape),
  })
}
