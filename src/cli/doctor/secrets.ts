// The files in which secrets stand: who may read one may read every backup, or whatever else it opens.

import { stat } from 'node:fs/promises'
import type { Settings } from '../../settings/settings.ts'
import { quoted, type Examination, type Finding } from './finding.ts'

const OTHERS = 0o007

export const secrets: Examination = {
  name: 'secrets',
  about: 'files of secrets',
  async examine({ settings }) {
    const findings: Finding[] = []
    for (const [of, path] of settings ? filesOf(settings) : []) {
      const mode = await modeOf(path)
      if (mode === undefined) continue
      if (mode & OTHERS)
        findings.push({
          health: 'warning',
          of,
          found: `${path} may be used by everybody (mode ${mode.toString(8)})`,
          costs: 'any program on this machine may take the secret along, and with it all that it opens',
          mend: `chmod o-rwx ${quoted(path)}`,
        })
      else findings.push({ health: 'good', of, found: `${path}, mode ${mode.toString(8)}` })
    }
    return findings
  },
}

/** All that say `file:/PATH`, by the names of their keys. */
function filesOf({ repositories, notify }: Settings): [name: string, path: string][] {
  const found: [string, string][] = []
  const add = (name: string, value: unknown) => {
    if (typeof value === 'string' && value.startsWith('file:/')) found.push([name, value.slice('file:'.length)])
  }
  for (const [name, { target, key }] of Object.entries(repositories)) {
    add(`repositories.${name}.encryption.key`, key)
    for (const [option, value] of Object.entries(target)) add(`repositories.${name}.${option}`, value)
  }
  notify.forEach(({ webhook }, index) => add(`notify[${index + 1}].webhook`, webhook))
  return found
}

/** Nothing where it is not there, or not to be seen: whoever needs it says so. */
async function modeOf(path: string): Promise<number | undefined> {
  try {
    return (await stat(path)).mode & 0o777
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === undefined) throw error
    return undefined
  }
}
