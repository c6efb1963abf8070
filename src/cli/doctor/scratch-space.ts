// Whether scratch space can become as large as it may.

import { statfs } from 'node:fs/promises'
import { formatSize } from '../../base/units.ts'
import { dropIn } from './commands.ts'
import { existing } from './existing-folder.ts'
import type { Examination } from './finding.ts'

/** Others use the file system as well. */
const SHARE = 0.8
const MIB = 1 << 20

export const scratchSpace: Examination = {
  name: 'scratch',
  about: 'scratch space',
  async examine(patient) {
    if (!patient.settings) return []
    const { path, limit } = patient.settings.scratch
    const folder = await existing(path)
    const { bavail, bsize } = await statfs(folder)
    const free = bavail * bsize
    if (free >= limit) return [{ health: 'good', found: `${formatSize(limit)} fit into ${folder}` }]
    const fits = Math.max(1, Math.floor((free * SHARE) / MIB))
    return [
      {
        health: 'warning',
        found: `it may grow to ${formatSize(limit)}, and ${formatSize(free)} are left in ${folder}`,
        costs: 'a backup of a busy guest fills the file system, and breaks with whatever else is there',
        mend: dropIn(patient, 'scratch', `scratch: { limit: ${fits}M }`),
      },
    ]
  },
}
