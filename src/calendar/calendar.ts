// When something comes again: an expression of systemd (on-calendar.ts) or of cron, in a time zone.

import { Cron } from 'croner'
import { messageOf } from '../base/errors.ts'
import { parseOnCalendar } from './on-calendar.ts'
import { localZone, Zone } from './zoned-time.ts'

/** More are not counted one by one. */
const MAX_COUNT = 1000

export interface Calendar {
  readonly text: string
  /** The first moment behind `after`, both in milliseconds since 1970, or undefined where it never comes again. */
  next(after: number): number | undefined
}

/** Five or six fields, or a nickname with @ that is no moment. */
const isCron = (text: string) => /^@[a-z]+$/i.test(text) || /^(\S+ +){4,5}\S+$/.test(text)

/** Why it is none, or the expression. `timeZone` is for what names none of its own; default: this machine's. */
export function parseCalendar(written: string, timeZone?: string): Calendar | string {
  const text = written.trim()
  const zone = zoneOf(timeZone)
  if (typeof zone === 'string') return zone
  if (isCron(text)) return parseCron(text, zone)
  const words = text.trim().split(/\s+/)
  // Nothing of systemd's has three words of only these.
  if (words.length > 2 && words.every(word => /^[\d*/,-]+$/.test(word)))
    return `cron has five fields (minute, hour, day, month, weekday), and here are ${words.length}`
  return parseSystemd(text, zone)
}

function zoneOf(name: string | undefined): Zone | string {
  try {
    return name === undefined ? localZone() : new Zone(name)
  } catch (error) {
    if (error instanceof RangeError) return `there is no time zone "${name}"`
    throw error
  }
}

function parseSystemd(text: string, zone: Zone): Calendar | string {
  const expression = parseOnCalendar(text)
  if (typeof expression === 'string') return expression
  return {
    text,
    next: after => {
      const seconds = expression.next(Math.floor(after / 1000), zone)
      return seconds === undefined ? undefined : seconds * 1000
    },
  }
}

function parseCron(text: string, zone: Zone): Calendar | string {
  try {
    const cron = new Cron(text, { paused: true, timezone: zone.name })
    return { text, next: after => cron.nextRun(new Date(after))?.getTime() }
  } catch (error) {
    if (error instanceof TypeError || error instanceof RangeError) return messageOf(error).replace(/^CronPattern: /, '')
    throw error
  }
}

/** Several expressions as one. */
export function anyOf(calendars: readonly Calendar[]): Calendar {
  return {
    text: calendars.map(({ text }) => text).join('; '),
    next: after => {
      const all = calendars.map(calendar => calendar.next(after)).filter(next => next !== undefined)
      return all.length > 0 ? Math.min(...all) : undefined
    },
  }
}

/** Those behind `after` and not behind `until`: how many (no more than MAX_COUNT are counted), the first, the last, and the one before it. */
export function between(calendar: Calendar, after: number, until: number) {
  let count = 0
  let first: number | undefined
  let [last, beforeLast]: (number | undefined)[] = []
  for (let next = calendar.next(after); next !== undefined && next <= until; next = calendar.next(next)) {
    first ??= next
    beforeLast = last
    last = next
    if (++count === MAX_COUNT) return { count, first, beforeLast: next, last: lastUntil(calendar, next, until) }
  }
  return first === undefined || last === undefined ? undefined : { count, first, beforeLast: beforeLast ?? first, last }
}

/** Looks back from `until` further and further, so that what comes often and what comes rarely is found as soon. */
function lastUntil(calendar: Calendar, known: number, until: number): number {
  for (let span = 60_000; ; span *= 2) {
    let last: number | undefined
    const from = Math.max(known, until - span)
    for (let next = calendar.next(from); next !== undefined && next <= until; next = calendar.next(next)) last = next
    if (last !== undefined) return last
    if (from === known) return known
  }
}
