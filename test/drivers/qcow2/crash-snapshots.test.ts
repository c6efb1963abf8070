// Power cuts while something is done to the image as a whole.

import { afterPowerCuts } from './crash-threads.ts'

afterPowerCuts(
  [
    { scenario: 'snapshots', runs: [13, 13], what: 'internal snapshots are there or not, hold what they held, and harm nothing' },
    {
      scenario: 'tables',
      runs: [1, 1],
      what: 'a refcount table that grows and another backing file have come whole or not at all',
    },
  ],
  5000,
)
