// stillpoint doctor: what this machine lacks, what that costs, and the command that mends it.

import { exitCodes } from '../exit-codes.ts'
import { verb } from '../define.ts'
import { clean } from '../format.ts'
import { configOption, type ConfigOption } from '../open-repository.ts'
import { print, printJson } from '../output.ts'
import type { Finding, Health } from '../doctor/finding.ts'

const words: Record<Health, string> = { good: 'ok', warning: 'warning', bad: 'BAD' }

export const doctor = verb<object, ConfigOption>({
  name: 'doctor',
  summary: 'say what this machine lacks, what that costs, and what mends it',
  details:
    'It looks at this machine, and at what the configuration names: sockets, files of secrets, images, scratch space, schedules and repositories; and, where the daemon answers, at its bitmaps. Into each repository an object is put, and deleted again, to see what its store does. Exit codes: 0 nothing is wrong; 4 something is slower or without a guard; 1 something does not work.',
  options: [configOption()],
  namesDaemon: false,
  examples: [
    ['stillpoint doctor', 'is all as it should be?'],
    ['stillpoint doctor --config stillpoint.yaml', 'with a configuration that is elsewhere'],
    [`stillpoint doctor --json | jq 'select(.health != "good")'`, 'what is not, for programs'],
  ],
  async run({ options: { config }, json }) {
    const [{ examinations }, { findPatient }] = await Promise.all([
      import('../doctor/examinations.ts'),
      import('../doctor/patient.ts'),
    ])
    await using stack = new AsyncDisposableStack()
    const patient = await findPatient(stack, config)
    let worst: Health = 'good'
    for (const examination of examinations)
      for (const finding of await examination.examine(patient)) {
        if (finding.health === 'bad' || worst === 'good') worst = finding.health
        if (json) printJson({ name: examination.name, ...finding })
        else print(text(examination.about, finding))
      }
    return worst === 'good' ? exitCodes.done : worst === 'warning' ? exitCodes.warnings : exitCodes.failed
  },
})

const text = (about: string, { health, of, found, costs, mend }: Finding) =>
  [
    `${words[health].padEnd(8)} ${about}${of === undefined ? '' : `, ${clean(of)}`}: ${clean(found)}\n`,
    ...(costs === undefined ? [] : [`           costs: ${costs}\n`]),
    ...(mend === undefined ? [] : [`           mend:  ${mend}\n`]),
  ].join('')
