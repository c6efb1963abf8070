// What options may be given, read and checked.

import { InvalidArgumentError } from 'commander'
import { parseDuration } from '../base/units.ts'

/** A time as in the configuration; whole seconds. */
export function seconds(text: string): number {
  const ms = parseDuration(text)
  if (!ms || ms < 1000)
    throw new InvalidArgumentError('It must be a time of at least a second with its unit, such as 90s, 10m or 24h')
  return Math.round(ms / 1000)
}
