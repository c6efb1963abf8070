// The arguments of blockdev-create: a union over all drivers, of what they need to make an image (QMP's BlockdevCreateOptions).

import { z } from 'zod'
import type { AnyDriver, ImageCreation, NodeOptions } from '../block/driver.ts'
import { drivers } from '../drivers/index.ts'
import { filters } from '../filters/index.ts'
import { blockdevRef, withoutDefaults } from './blockdev-options.ts'

/** QEMU knows nothing of them, and they make no images. */
const OURS = new Set(['quota', 'delay', 'inject-error'])

const [first, ...others] = [...drivers, ...filters.filter(({ name }) => !OURS.has(name))].map(driver =>
  driver.creation ? optionsOf(driver, driver.creation) : z.strictObject({ driver: z.literal(driver.name) }),
)

export const blockdevCreateOptions = z.discriminatedUnion('driver', [first!, ...others]) as z.ZodType as z.ZodType<NodeOptions>

function optionsOf({ name }: AnyDriver, { options, files }: ImageCreation<unknown>) {
  const references = Object.entries(files).map(([file, { optional }]) => [file, optional ? blockdevRef.optional() : blockdevRef])
  return z.strictObject({
    driver: z.literal(name),
    ...(Object.fromEntries(references) as z.ZodRawShape),
    ...withoutDefaults((options as z.ZodObject).shape),
  })
}
