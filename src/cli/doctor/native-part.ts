// Whether the system calls that Node lacks can be made.

import { whyNotNative } from '../../base/native.ts'
import type { Examination } from './finding.ts'

export const nativePart: Examination = {
  name: 'native',
  about: 'system calls that Node lacks',
  async examine() {
    if (whyNotNative === undefined) return [{ health: 'good', found: 'koffi is loaded' }]
    const off = process.env['STILLPOINT_NATIVE'] === 'off'
    return [
      {
        health: 'warning',
        found: `koffi is not loaded: ${whyNotNative}`,
        costs:
          'image files are not locked against other programs; holes in raw images are read and sent as zeroes, discards give no space back, and zeroing writes zeroes; compression takes twice the time, and decompression three times',
        mend: off ? 'unset STILLPOINT_NATIVE' : 'npm install koffi (in the folder of stillpoint)',
      },
    ]
  },
}
