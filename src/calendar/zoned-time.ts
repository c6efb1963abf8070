// Local time in a time zone, by the zones that Node brings along: what a clock on the wall shows, and when it shows that.

/** Seconds since 1970 on the wall, as if it were UTC. */
export type WallSeconds = number

const DAY = 86_400

export class Zone {
  readonly #format: Intl.DateTimeFormat

  /** @throws RangeError for a zone that nobody knows */
  constructor(readonly name: string) {
    this.#format = new Intl.DateTimeFormat('en-US-u-ca-iso8601-nu-latn', {
      timeZone: name,
      hourCycle: 'h23',
      year: 'numeric',
      month: 'numeric',
      day: 'numeric',
      hour: 'numeric',
      minute: 'numeric',
      second: 'numeric',
    })
  }

  /** What the wall shows at a moment (seconds since 1970). */
  wallAt(seconds: number): WallSeconds {
    const parts: Record<string, number> = {}
    for (const { type, value } of this.#format.formatToParts(seconds * 1000)) parts[type] = Number(value)
    const { year, month, day, hour, minute, second } = parts
    return Date.UTC(year!, month! - 1, day, hour, minute, second) / 1000
  }

  /** How far the wall is ahead of UTC. */
  offsetAt(seconds: number): number {
    return this.wallAt(seconds) - seconds
  }

  /**
   * When the wall shows this: once on most days, twice where the clock is set back, in their order. Where it is set forward and the wall never
   * shows it: once, when it would have.
   */
  momentsOf(wall: WallSeconds): number[] {
    const [before, after] = [this.offsetAt(wall - DAY), this.offsetAt(wall + DAY)]
    if (before === after) return [wall - before]
    const shown = [...new Set([wall - before, wall - after])].filter(moment => this.wallAt(moment) === wall)
    return shown.length > 0 ? shown.toSorted((a, b) => a - b) : [wall - before]
  }
}

/** This machine's. */
export const localZone = () => new Zone(Intl.DateTimeFormat().resolvedOptions().timeZone)
