// The limits of a throttle group, in QMP's words (ThrottleLimits), and what of them makes no sense (QEMU's throttle_is_valid).

import { z } from 'zod'

const KINDS = ['iops-total', 'iops-read', 'iops-write', 'bps-total', 'bps-read', 'bps-write'] as const

export type ThrottleKind = (typeof KINDS)[number]

/** QEMU's THROTTLE_VALUE_MAX. */
const MOST = 1e15

/** Of 64 bits, so that what is far too much is told so in QEMU's words. */
const integer = z.number().meta({ qapi: 'int64' })

const kinds = <Suffix extends string>(suffix: Suffix, describe: string) =>
  Object.fromEntries(
    KINDS.map(kind => [`${kind}${suffix}`, integer.optional().describe(`${kind}${suffix}: ${describe}`)]),
  ) as Record<`${ThrottleKind}${Suffix}`, z.ZodOptional<typeof integer>>

/** 0 or nothing is no limit. */
export const throttleMembers = {
  ...kinds('', 'requests, or bytes, a second'),
  ...kinds('-max', 'as much at once, or in each second of a burst'),
  ...kinds('-max-length', 'seconds that a burst may last'),
  'iops-size': integer.optional().describe('A request of more bytes than this counts as several'),
}

export const throttleLimits = z
  .strictObject(throttleMembers)
  .superRefine((limits, context) => {
    const message = whatIsWrong(limits)
    if (message !== undefined) context.addIssue({ code: 'custom', message })
  })
  .transform(limits => limits as ThrottleLimits)

export type ThrottleLimits = { readonly [Name in keyof typeof throttleMembers]?: number | undefined }

function whatIsWrong(limits: ThrottleLimits): string | undefined {
  for (const kind of KINDS) {
    const name = `${kind}-max-length` as const
    if ((limits[name] ?? 0) >= 2 ** 32) return `${name} value must be in the range [0, ${2 ** 32 - 1}]`
  }
  const given = (...names: (keyof ThrottleLimits)[]) => names.some(name => limits[name])
  const both = (unit: 'iops' | 'bps', suffix: '' | '-max') =>
    given(`${unit}-total${suffix}`) && given(`${unit}-read${suffix}`, `${unit}-write${suffix}`)
  if (both('iops', '') || both('bps', '') || both('iops', '-max') || both('bps', '-max'))
    return 'bps/iops/max total values and read/write values cannot be used at the same time'
  if (given('iops-size') && !given('iops-total', 'iops-read', 'iops-write')) return 'iops size requires an iops value to be set'
  for (const kind of KINDS) {
    const { [kind]: average = 0, [`${kind}-max` as const]: max = 0, [`${kind}-max-length` as const]: length = 1 } = limits
    if (!inRange(average) || !inRange(max)) return `bps/iops/max values must be within [0, ${MOST}]`
    if (length === 0) return 'the burst length cannot be 0'
    if (length !== 1 && max === 0) return 'burst length set without burst rate'
    if (max > 0 && (length < 0 || length > MOST / max)) return 'burst length too high for this burst rate'
    if (max > 0 && average === 0) return 'bps_max/iops_max require corresponding bps/iops values'
    if (max > 0 && max < average) return 'bps_max/iops_max cannot be lower than bps/iops'
  }
  return undefined
}

const inRange = (value: number) => value >= 0 && value <= MOST
