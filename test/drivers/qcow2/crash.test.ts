// Power cuts while a disk is used: at every moment, whatever part of the unflushed sectors is left, the image opens, nothing in it
// contradicts itself, what was flushed is there, and what was not is the old or the new.

import { afterPowerCuts } from './crash-threads.ts'

afterPowerCuts(
  [
    {
      scenario: 'histories',
      runs: [105, 105],
      what: 'nothing contradicts itself, what was flushed is there and the rest is old or new',
    },
    { scenario: 'bitmaps', runs: [12], what: 'stored bitmaps are the old or the new' },
  ],
  5000,
)
