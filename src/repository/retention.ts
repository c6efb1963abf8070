// Which restore points to keep, and why: Proxmox Backup's rules, which operators know.
//
// The rules are taken in the order last, hourly, daily, weekly, monthly, yearly, within. Each goes through the restore points from the
// newest to the oldest and keeps the newest of each period, until it has kept as many as it says. A period that has a restore point
// which an earlier rule keeps is covered, and not counted. Periods are those of the local time zone; weeks are ISO 8601's.
// One that is of the future, because a clock was wrong then or is now, is kept and counts for no rule: taken for the newest it would have
// everything that is pushed until then forgotten.

import { InvalidParameter } from '../base/errors.ts'
import { isOfTheFuture } from '../base/time.ts'

export interface RetentionPolicy {
  readonly last?: number
  readonly hourly?: number
  readonly daily?: number
  readonly weekly?: number
  readonly monthly?: number
  readonly yearly?: number
  /** Keeps everything that is not older than this. */
  readonly withinMs?: number
}

export interface RetainedPoint {
  readonly key: string
  readonly time: Date
  /** All disks of the machine are in it. */
  readonly complete: boolean
  readonly pinned?: boolean
  readonly inUse?: boolean
}

export interface Decision {
  readonly key: string
  readonly keep: boolean
  /** A few words: "daily", "pinned", "no rule keeps it". */
  readonly reason: string
}

const two = (number: number) => String(number).padStart(2, '0')
const month = (time: Date) => `${time.getFullYear()}-${two(time.getMonth() + 1)}`
const day = (time: Date) => `${month(time)}-${two(time.getDate())}`

const periods: readonly (readonly [
  rule: 'hourly' | 'daily' | 'weekly' | 'monthly' | 'yearly',
  period: (time: Date) => string,
])[] = [
  ['hourly', time => `${day(time)} ${two(time.getHours())} ${time.getTimezoneOffset()}`],
  ['daily', day],
  ['weekly', isoWeek],
  ['monthly', month],
  ['yearly', time => String(time.getFullYear())],
]

/** One decision for each restore point, newest first. They are of one machine. */
export function retain(points: readonly RetainedPoint[], policy: RetentionPolicy, now: Date): Decision[] {
  check(policy)
  const sorted = [...points].sort((a, b) => b.time.getTime() - a.time.getTime() || (a.key < b.key ? 1 : -1))
  const reasons = new Map<RetainedPoint, string>()
  for (const point of sorted) if (isOfTheFuture(point.time, now)) reasons.set(point, 'of the future: a clock was wrong')
  const complete = sorted.filter(point => point.complete && !reasons.has(point))
  const [newest] = complete
  for (const point of sorted) {
    if (point.complete || reasons.has(point)) continue
    // It covers no period. While nothing complete has come after it, it is what there is.
    if (!newest || point.time > newest.time) reasons.set(point, 'incomplete, and nothing newer is complete')
  }
  for (const point of complete.slice(0, policy.last ?? 0)) reasons.set(point, 'last')
  for (const [rule, period] of periods) {
    const covered = new Set(complete.filter(point => reasons.has(point)).map(({ time }) => period(time)))
    let count = policy[rule] ?? 0
    for (const point of complete) {
      if (count === 0) break
      if (reasons.has(point) || covered.has(period(point.time))) continue
      covered.add(period(point.time))
      reasons.set(point, rule)
      count--
    }
  }
  for (const point of complete)
    if (!reasons.has(point) && policy.withinMs !== undefined && now.getTime() - point.time.getTime() <= policy.withinMs)
      reasons.set(point, 'within')
  for (const point of sorted) {
    if (reasons.has(point)) continue
    if (point === newest) reasons.set(point, 'the newest complete one')
    else if (point.pinned) reasons.set(point, 'pinned')
    else if (point.inUse) reasons.set(point, 'in use')
  }
  return sorted.map(point => {
    const reason = reasons.get(point)
    return {
      key: point.key,
      keep: reason !== undefined,
      reason: reason ?? (point.complete ? 'no rule keeps it' : 'incomplete, and a newer one is complete'),
    }
  })
}

function check({ withinMs, ...counts }: RetentionPolicy) {
  for (const [rule, count] of Object.entries(counts))
    if (count !== undefined && !(Number.isSafeInteger(count) && count >= 0))
      throw new InvalidParameter(`retention: ${rule} must be a whole number`)
  if (withinMs !== undefined && !(withinMs >= 0)) throw new InvalidParameter('retention: within must be a time')
  if (!withinMs && Object.values(counts).every(count => !count))
    throw new InvalidParameter('retention: the policy keeps nothing; say what to keep, such as daily: 14')
}

/** The week is the year's that its Thursday is in. */
function isoWeek(time: Date) {
  const thursday = new Date(time.getFullYear(), time.getMonth(), time.getDate() + 3 - ((time.getDay() + 6) % 7))
  const first = new Date(thursday.getFullYear(), 0, 4)
  const week = 1 + Math.round(((thursday.getTime() - first.getTime()) / 86_400_000 - 3 + ((first.getDay() + 6) % 7)) / 7)
  return `${thursday.getFullYear()}-W${two(week)}`
}
