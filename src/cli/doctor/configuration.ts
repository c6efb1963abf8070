// Whether there is a configuration, and what is wrong with it.

import { withConfig } from './commands.ts'
import type { Examination } from './finding.ts'

export const configuration: Examination = {
  name: 'configuration',
  about: 'configuration',
  async examine(patient) {
    const { file, settings, problem } = patient
    if (problem !== undefined)
      return [
        {
          health: 'bad',
          found: problem.split('\n').join('; '),
          costs: 'a daemon does not start with it, and one that runs goes on with the one before',
          mend: `mend the file; then: ${withConfig(patient, 'daemon --check')}`,
        },
      ]
    if (!settings) return []
    const names = Object.keys(settings.machines)
    return [{ health: 'good', found: `${file}: ${names.length === 0 ? 'no machines' : names.join(', ')}` }]
  },
}
