// Every layer that can be put over an image.

import type { AnyDriver } from '../block/driver.ts'

export const filters: readonly AnyDriver[] = []
