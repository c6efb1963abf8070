// Sizes and durations as people write them: 10G, 512MiB; 10s, 1h30m.

/** Powers of 1024, as QEMU's tools read these letters. */
const sizeUnits: Record<string, number> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40, P: 2 ** 50 }

/** Bytes, or undefined where the text is no size: a number, whole once multiplied, and K, M, G, T, P (also KiB, ...) or nothing. */
export function parseSize(text: string): number | undefined {
  const [, number = '', unit = ''] = /^(\d+(?:\.\d+)?) ?(?:([KMGTP])(?:iB)?)?$/i.exec(text.trim()) ?? []
  const bytes = Number(number) * (sizeUnits[unit.toUpperCase()] ?? Number.NaN)
  return number !== '' && Number.isSafeInteger(bytes) ? bytes : undefined
}

const durationUnits: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }

/** Milliseconds, or undefined where the text is no duration: numbers, each with ms, s, m, h or d. */
export function parseDuration(text: string): number | undefined {
  if (!/^(\d+(ms|s|m|h|d) *)+$/.test(text)) return undefined
  let ms = 0
  for (const [, number, unit] of text.matchAll(/(\d+)(ms|s|m|h|d)/g)) ms += Number(number) * durationUnits[unit!]!
  return Number.isSafeInteger(ms) ? ms : undefined
}

/** A size for people to read: 1536 is "1.5 KiB". */
export function formatSize(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`
  const power = Math.min(Math.floor(Math.log2(bytes) / 10), 5)
  const value = bytes / 1024 ** power
  return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0).replace(/\.0+$|(\.\d*?)0+$/, '$1')} ${' KMGTP'[power]}iB`
}
