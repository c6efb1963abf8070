// The bitmaps of checkpoints, as the daemon has them: those that nobody knows, and those that cannot be relied on.

import { ofDaemon } from './commands.ts'
import type { Examination, Finding } from './finding.ts'

const words = { orphan: 'belongs to no checkpoint', inconsistent: 'is inconsistent', missing: 'is missing' } as const

export const bitmaps: Examination = {
  name: 'bitmaps',
  about: 'bitmaps of checkpoints',
  async examine(patient) {
    const { settings, daemon } = patient
    if (!settings) return []
    if (!daemon) return [{ health: 'good', found: 'not looked at: the daemon has them, and none answers' }]
    const findings: Finding[] = []
    for (const { name: machine } of await daemon.ask('query-machines')) {
      const { findings: all } = await daemon.ask('checkpoint-repair', { machine, mend: false })
      const [first] = all
      if (!first) findings.push({ health: 'good', of: machine, found: 'all of them are there' })
      else
        findings.push({
          health: 'warning',
          of: machine,
          found: all
            .map(({ disk, bitmap, problem, reason }) => `${disk}: '${bitmap}' ${words[problem]}${reason ? ` (${reason})` : ''}`)
            .join('; '),
          costs:
            'what changed since those checkpoints is not known, and backups that begin with them are refused, or read everything',
          mend: ofDaemon(patient, `checkpoint repair ${machine}`),
        })
    }
    return findings
  },
}
