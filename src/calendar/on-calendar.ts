// Calendar expressions as systemd.time(7) has them (OnCalendar=): `Mon..Fri *-*-* 02:00 Europe/Berlin`.
//
// What differs from systemd, on purpose: a time that the clock jumps over in spring comes when it would have come (systemd leaves that day
// out), and what runs in every hour also runs in the hour that comes twice in autumn. Fractions of seconds are refused.

import { Zone, type WallSeconds } from './zoned-time.ts'

interface Component {
  readonly start: number
  readonly stop?: number | undefined
  readonly step?: number | undefined
}

/** Undefined: any. */
type Components = readonly Component[] | undefined

interface Parsed {
  /** Sunday is 0. */
  readonly weekdays: ReadonlySet<number> | undefined
  readonly years: Components
  readonly months: Components
  readonly days: Components
  /** Days are counted from the end of the month, the last one is 1. */
  readonly fromEnd: boolean
  readonly hours: Components
  readonly minutes: Components
  readonly seconds: Components
  /** Undefined: whoever asks says which. */
  readonly zone: Zone | undefined
}

/** As systemd, whose search ends there too. */
const LAST_YEAR = 2199
const FIRST_YEAR = 1970
const DAY = 86_400
const WEEKDAYS = ['sunday', 'monday', 'tuesday', 'wednesday', 'thursday', 'friday', 'saturday']
const shorthands: Record<string, string> = {
  minutely: '*-*-* *:*:00',
  hourly: '*-*-* *:00:00',
  daily: '*-*-* 00:00:00',
  weekly: 'Mon *-*-* 00:00:00',
  monthly: '*-*-01 00:00:00',
  quarterly: '*-01,04,07,10-01 00:00:00',
  semiannually: '*-01,07-01 00:00:00',
  'semi-annually': '*-01,07-01 00:00:00',
  biannually: '*-01,07-01 00:00:00',
  'bi-annually': '*-01,07-01 00:00:00',
  yearly: '*-01-01 00:00:00',
  annually: '*-01-01 00:00:00',
}

class NotUnderstood extends Error {}

/** Why it is none, or the expression. */
export function parseOnCalendar(text: string): OnCalendar | string {
  try {
    return new OnCalendar(parse(text))
  } catch (error) {
    if (error instanceof NotUnderstood) return error.message
    throw error
  }
}

function parse(text: string): Parsed {
  const words = text.split(/ +/)
  const zone = words.length > 1 || shorthands[words[0]!.toLowerCase()] ? zoneOf(words.at(-1)!) : undefined
  if (zone) words.pop()
  const named = words.length === 1 ? shorthands[words[0]!.toLowerCase()] : undefined
  const rest = named ? named.split(' ') : words
  if (rest[0] === '') throw new NotUnderstood('there is nothing')
  const weekdays = rest.length > 0 && /^[a-z]/i.test(rest[0]!) ? weekdaysOf(rest.shift()!) : undefined
  if (rest.length === 1 && /^@\d+$/.test(rest[0]!) && !weekdays) return atMoment(Number(rest[0]!.slice(1)))
  const date = rest.length > 0 && !rest[0]!.includes(':') ? dateOf(rest.shift()!) : anyDate
  const time = rest.length > 0 ? timeOf(rest.shift()!) : midnight
  if (rest.length > 0)
    throw new NotUnderstood(`"${rest[0]}" is too much: weekdays, a date, a time and a time zone are all there is`)
  return { weekdays, ...date, ...time, zone }
}

function zoneOf(word: string): Zone | undefined {
  if (/^utc$/i.test(word)) return new Zone('UTC')
  // Whatever begins like this is none, and Intl knows more names for zones than tzdata, such as offsets.
  if (!/^[A-Za-z][A-Za-z0-9_+-]*(\/[A-Za-z0-9_+-]+)*$/.test(word) || shorthands[word.toLowerCase()] || isWeekdays(word))
    return undefined
  try {
    return new Zone(word)
  } catch (error) {
    if (error instanceof RangeError) throw new NotUnderstood(`there is no time zone "${word}"`)
    throw error
  }
}

const weekday = (word: string) =>
  WEEKDAYS.findIndex(name => name === word.toLowerCase() || name.slice(0, 3) === word.toLowerCase())

const isWeekdays = (word: string) => word.split(/,|\.\.|-/).every(part => part === '' || weekday(part) >= 0)

function weekdaysOf(word: string): ReadonlySet<number> {
  const days = new Set<number>()
  for (const part of word.replace(/,$/, '').split(',')) {
    const [from, to, more] = part.split(/\.\.|-/).map(weekday)
    if (from === undefined || from < 0 || (to ?? 0) < 0 || more !== undefined) throw new NotUnderstood(`"${part}" is no weekday`)
    // The week begins on Monday.
    const [first, last] = [from, to ?? from].map(day => (day + 6) % 7) as [number, number]
    if (first > last) throw new NotUnderstood(`"${part}": the week begins on Monday`)
    for (let day = first; day <= last; day++) days.add((day + 1) % 7)
  }
  return days
}

const anyDate = { years: undefined, months: undefined, days: undefined, fromEnd: false }

function dateOf(word: string) {
  const found = /^(?:([^-~]+)-)?([^-~]+)([-~])([^-~]+)$/.exec(word)
  if (!found) throw new NotUnderstood(`"${word}" is no date such as *-*-01 or 2027-12-24, and no time such as 02:00`)
  const [, year = '*', month, separator, day] = found
  const fromEnd = separator === '~'
  const dates = {
    years: componentsOf(year, 'year', FIRST_YEAR, LAST_YEAR, { written: century }),
    months: componentsOf(month!, 'month', 1, 12),
    // Every month has so many from its end.
    days: componentsOf(day!, 'day', 1, fromEnd ? 28 : 31, { down: fromEnd }),
    fromEnd,
  }
  return dates
}

const century = (year: number) => (year < 70 ? year + 2000 : year < 100 ? year + 1900 : year)

const midnight = { hours: [{ start: 0 }], minutes: [{ start: 0 }], seconds: [{ start: 0 }] }

function timeOf(word: string) {
  const [hour, minute, second = '0', more] = word.split(':')
  if (minute === undefined || more !== undefined) throw new NotUnderstood(`"${word}" is no time such as 02:00 or *:0/15`)
  return {
    hours: componentsOf(hour!, 'hour', 0, 23),
    minutes: componentsOf(minute, 'minute', 0, 59),
    seconds: componentsOf(second, 'second', 0, 59),
  }
}

interface Reading {
  /** What a number that is written means. */
  readonly written?: (number: number) => number
  /** It repeats towards the least. */
  readonly down?: boolean
}

function componentsOf(text: string, what: string, least: number, most: number, reading: Reading = {}): Components {
  if (text === '*') return undefined
  const { written = number => number, down = false } = reading
  return text.split(',').map(part => {
    const found = /^(\d{1,4})(?:\.\.(\d{1,4}))?(?:\/(\d{1,4}))?$/.exec(part)
    if (!found) throw new NotUnderstood(`"${part}" is no ${what}: a number, a range such as 1..5, a repetition such as 0/5, or *`)
    const [start, stop] = [found[1]!, found[2]].map(digits => (digits === undefined ? undefined : written(Number(digits))))
    const step = found[3] === undefined ? undefined : Number(found[3])
    if (stop !== undefined && stop < start!) throw new NotUnderstood(`"${part}" ends before it begins`)
    if (step === 0) throw new NotUnderstood(`"${part}" repeats every 0`)
    // A range ends with the last time it comes, from which days at the end of a month are counted.
    const last = stop === undefined || step === undefined ? stop : stop - ((stop - start!) % step)
    if ([start!, last ?? start!].some(number => number < least || number > most))
      throw new NotUnderstood(`${named(what)} is from ${least} to ${most}, and not "${part}"`)
    if (stop === undefined && step !== undefined && (down ? start! - step < least : start! + step > most))
      throw new NotUnderstood(`"${part}" comes only once: ${named(what)} is from ${least} to ${most}`)
    return { start: start!, stop: last, step }
  })
}

const named = (what: string) => (what === 'hour' ? 'an hour' : `a ${what}`)

const only = (start: number) => [{ start }]

function atMoment(seconds: number): Parsed {
  const date = new Date(seconds * 1000)
  if (!(date.getUTCFullYear() <= LAST_YEAR)) throw new NotUnderstood(`"@${seconds}" is too far away`)
  return {
    weekdays: undefined,
    years: only(date.getUTCFullYear()),
    months: only(date.getUTCMonth() + 1),
    days: only(date.getUTCDate()),
    fromEnd: false,
    hours: only(date.getUTCHours()),
    minutes: only(date.getUTCMinutes()),
    seconds: only(date.getUTCSeconds()),
    zone: new Zone('UTC'),
  }
}

const isIn = (components: Components, value: number) =>
  components === undefined ||
  components.some(({ start, stop, step }) => {
    if (value < start || (stop !== undefined && value > stop)) return false
    if (stop === undefined && step === undefined) return value === start
    return (value - start) % (step ?? 1) === 0
  })

const valuesOf = (components: Components, most: number) =>
  Array.from({ length: most + 1 }, (_, value) => value).filter(value => isIn(components, value))

/** Days that are counted from the end, as days of a month that has so many. */
const turned = (components: Components, length: number): Components =>
  components?.map(({ start, stop, step }) => {
    const [from, to] = [length + 1 - start, stop === undefined ? undefined : length + 1 - stop]
    return { start: to === undefined ? from : Math.min(from, to), stop: to === undefined ? undefined : Math.max(from, to), step }
  })

export class OnCalendar {
  readonly #hours: readonly number[]
  readonly #minutes: readonly number[]
  readonly #seconds: readonly number[]

  constructor(private readonly parsed: Parsed) {
    this.#hours = valuesOf(parsed.hours, 23)
    this.#minutes = valuesOf(parsed.minutes, 59)
    this.#seconds = valuesOf(parsed.seconds, 59)
  }

  /** The first moment behind `after` (seconds since 1970), or undefined where there is none any more. */
  next(after: number, local: Zone): number | undefined {
    const zone = this.parsed.zone ?? local
    const start = Math.floor(zone.wallAt(after) / DAY)
    // A clock that is set back over midnight has the day before once more.
    for (let day = start - 1; ;) {
      const date = new Date(day * DAY * 1000)
      const year = date.getUTCFullYear()
      if (year > LAST_YEAR) return undefined
      if (!isIn(this.parsed.years, year)) day = firstOf(year + 1, 0)
      else if (!isIn(this.parsed.months, date.getUTCMonth() + 1)) day = firstOf(year, date.getUTCMonth() + 1)
      else {
        const found = this.#isDay(date) ? this.#nextOnDay(day, after, zone) : undefined
        if (found !== undefined) return found
        day++
      }
    }
  }

  #isDay(date: Date): boolean {
    const { weekdays, days, fromEnd } = this.parsed
    if (weekdays && !weekdays.has(date.getUTCDay())) return false
    const length = new Date(Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + 1, 0)).getUTCDate()
    return isIn(fromEnd ? turned(days, length) : days, date.getUTCDate())
  }

  #nextOnDay(day: number, after: number, zone: Zone): number | undefined {
    const midnightWall = day * DAY
    const [before, behind] = [zone.offsetAt(midnightWall - DAY), zone.offsetAt(midnightWall + 2 * DAY)]
    if (before === behind) {
      const wall = this.#wallFrom(midnightWall, after + before + 1)
      return wall === undefined ? undefined : wall - before
    }
    // The clock is set around this day: what the wall shows is not in the order of what happens.
    const everyHour = this.#hours.length === 24
    let best: number | undefined
    for (const wall of this.#walls(midnightWall)) {
      const moments = zone.momentsOf(wall)
      for (const moment of everyHour ? moments : moments.slice(0, 1))
        if (moment > after && (best === undefined || moment < best)) best = moment
    }
    return best
  }

  /** The first time of a day that is not before `from`. */
  #wallFrom(midnightWall: WallSeconds, from: WallSeconds): WallSeconds | undefined {
    for (const hour of this.#hours) {
      if (midnightWall + hour * 3600 + 3599 < from) continue
      for (const minute of this.#minutes) {
        if (midnightWall + hour * 3600 + minute * 60 + 59 < from) continue
        for (const second of this.#seconds) {
          const wall = midnightWall + hour * 3600 + minute * 60 + second
          if (wall >= from) return wall
        }
      }
    }
    return undefined
  }

  *#walls(midnightWall: WallSeconds): Generator<WallSeconds> {
    for (const hour of this.#hours)
      for (const minute of this.#minutes)
        for (const second of this.#seconds) yield midnightWall + hour * 3600 + minute * 60 + second
  }
}

const firstOf = (year: number, month: number) => Date.UTC(year, month, 1) / 1000 / DAY
