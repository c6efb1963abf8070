// stillpoint doctor: what this machine lacks, what that costs, and the command that mends it.

import { exitCodes } from '../exit-codes.ts'
import { verb } from '../define.ts'
import { clean } from '../format.ts'
import { print, printJson } from '../output.ts'
import type { Finding, Health } from '../doctor/finding.ts'

const words: Record<Health, string> = { good: 'ok', warning: 'warning', bad: 'BAD' }

export const doctor = verb({
  name: 'doctor',
  summary: 'say what this machine lacks, what that costs, and what mends it',
  details:
    'Exit codes: 0 nothing is wrong; 4 something is slower or without a guard; 1 something does not work. It asks no daemon.',
  namesDaemon: false,
  examples: [
    ['stillpoint doctor', 'is all as it should be?'],
    [`stillpoint doctor --json | jq 'select(.health != "good")'`, 'what is not, for programs'],
  ],
  async run({ json }) {
    const { examinations } = await import('../doctor/examinations.ts')
    let worst: Health = 'good'
    for (const examination of examinations) {
      const finding = await examination.examine()
      if (finding.health === 'bad' || worst === 'good') worst = finding.health
      if (json) printJson({ name: examination.name, ...finding })
      else print(text(examination.about, finding))
    }
    return worst === 'good' ? exitCodes.done : worst === 'warning' ? exitCodes.warnings : exitCodes.failed
  },
})

const text = (about: string, { health, found, costs, mend }: Finding) =>
  [
    `${words[health].padEnd(8)} ${about}: ${clean(found)}\n`,
    ...(costs === undefined ? [] : [`           costs: ${costs}\n`]),
    ...(mend === undefined ? [] : [`           mend:  ${mend}\n`]),
  ].join('')
