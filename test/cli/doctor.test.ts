// stillpoint doctor: each finding in a state in which it is good, and in one in which it is not.

import t from 'tap'
import { native } from '../../src/base/native.ts'
import { stillpointInThread } from '../helpers/stillpoint.ts'

interface Line {
  readonly name: string
  readonly health: string
  readonly found: string
  readonly costs?: string
  readonly mend?: string
}

const lines = (stdout: string) =>
  stdout
    .trim()
    .split('\n')
    .map(line => JSON.parse(line) as Line)

t.test(
  'where nothing is wrong the doctor says so, and exits with 0',
  { skip: !native && 'koffi does not load here' },
  async t => {
    const { code, stdout } = await stillpointInThread(['doctor'])
    t.equal(code, 0, stdout)
    t.match(
      stdout,
      /^ok +Node\.js: v\d+.*\nok +system calls that Node lacks: koffi is loaded\nok +locks on image files: they work/,
    )
    const json = await stillpointInThread(['doctor', '--json'])
    t.same(
      lines(json.stdout).map(({ name, health }) => `${name} ${health}`),
      ['node good', 'native good', 'file-locks good'],
    )
  },
)

t.test('what is missing is told with what it costs and what mends it, and the exit code is 4', async t => {
  const { code, stdout } = await stillpointInThread(['doctor', '--json'], { STILLPOINT_NATIVE: 'off' })
  t.equal(code, 4)
  const wrong = lines(stdout).filter(({ health }) => health !== 'good')
  t.same(
    wrong.map(({ name }) => name),
    ['native', 'file-locks'],
  )
  for (const { name, costs, mend } of wrong) t.ok(costs && mend, name)
  t.equal(wrong[0]!.mend, 'unset STILLPOINT_NATIVE')
  const text = await stillpointInThread(['doctor'], { STILLPOINT_NATIVE: 'off' })
  t.match(text.stdout, /\nwarning +system calls that Node lacks: .*\n +costs: .*\n +mend: +unset STILLPOINT_NATIVE\n/)
})
