// Times, spans and texts as people read them.

/** An instant in the local time zone: 2025-11-25 01:42:07 +01:00. */
export function formatTime(rfc3339: string): string {
  const time = new Date(rfc3339)
  if (Number.isNaN(time.getTime())) return clean(rfc3339)
  const east = -time.getTimezoneOffset()
  const local = new Date(time.getTime() + east * 60_000).toISOString()
  const zone = `${east < 0 ? '-' : '+'}${two(Math.floor(Math.abs(east) / 60))}:${two(Math.abs(east) % 60)}`
  return `${local.slice(0, 10)} ${local.slice(11, 19)} ${zone}`
}

const two = (number: number) => String(number).padStart(2, '0')

const spanUnits = [
  ['d', 86_400],
  ['h', 3600],
  ['min', 60],
  ['s', 1],
] as const

/** How long, in its two largest units: 2 d 4 h; 3 min 5 s. */
export function formatSpan(ms: number): string {
  let seconds = Math.max(0, Math.round(ms / 1000))
  const first = spanUnits.findIndex(([, size]) => seconds >= size)
  if (first < 0) return '0 s'
  const parts = spanUnits.slice(first, first + 2).map(([unit, size]) => {
    const count = Math.floor(seconds / size)
    seconds -= count * size
    return count > 0 ? `${count} ${unit}` : ''
  })
  return parts.filter(Boolean).join(' ')
}

/** A share in percent, so that neither 0 % nor 100 % is said of what is only near it. */
export function formatShare(part: number, whole: number): string {
  if (part <= 0 || whole <= 0) return '0 %'
  if (part >= whole) return '100 %'
  return `${Math.min(99, Math.max(1, Math.round((part / whole) * 100)))} %`
}

/** Text from elsewhere without what a terminal would obey. */
export const clean = (text: string): string =>
  // oxlint-disable-next-line no-control-regex -- those are what it is about
  text.replaceAll(/[\x00-\x1f\x7f-\x9f]/g, character => `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`)

export const plural = (count: number, one: string, many = `${one}s`): string => `${count} ${count === 1 ? one : many}`
