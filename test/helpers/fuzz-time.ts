// How often a property is tried: a number of runs in the suite, so long as scripts/fuzz says by hand.

import fc from './property.ts'

/** For fc.assert. */
export function tries(numRuns: number): fc.Parameters<unknown> {
  const seconds = Number(process.env['STILLPOINT_FUZZ_SECONDS'] ?? 0)
  if (!(seconds > 0)) return { numRuns }
  return { numRuns: 2 ** 31 - 1, plugins: [fc.interruptAfterTimeLimit(seconds * 1000, { failOnInterrupt: false })] }
}
