// Whether anything that is backed up on schedule is ever forgotten.

import { dropIn } from './commands.ts'
import type { Examination, Finding } from './finding.ts'

export const schedules: Examination = {
  name: 'schedules',
  about: 'schedules',
  async examine(patient) {
    const findings: Finding[] = []
    for (const { name, mode, keep, repository } of Object.values(patient.settings?.schedules ?? {})) {
      if (mode === 'pull' || keep)
        findings.push({ health: 'good', of: name, found: mode === 'pull' ? 'pulled' : 'with retention' })
      else
        findings.push({
          health: 'warning',
          of: name,
          found: 'it has no retention (keep)',
          costs: `no restore point is ever forgotten, and repository '${repository}' only grows`,
          mend: dropIn(
            patient,
            `keep-${name}`,
            `schedules: { ${name}: { keep: { last: 4, daily: 14, weekly: 8, monthly: 12 } } }`,
          ),
        })
    }
    return findings
  },
}
