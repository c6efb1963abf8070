// Our control socket beside qemu-storage-daemon's: each scenario is done with both, and replies, events, bitmaps, block status, data and
// the images afterwards must be the same. What differs on purpose says so at its step, with the reason, and fails when it differs no more.

import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import t, { type Test } from 'tap'
import { qsdMissing } from '../helpers/qemu-storage-daemon.ts'
import type { ImageSpec, Scenario, Step } from '../helpers/scenario.ts'
import { Side } from '../helpers/side.ts'
import { attempt, missing } from '../helpers/tools.ts'
import { nodes } from './scenarios/nodes.ts'

const topics: Readonly<Record<string, readonly Scenario[]>> = { nodes }

const skip = qsdMissing || missing('qemu-img', 'qemu-io', 'nbdinfo', 'nbdcopy')

for (const [topic, scenarios] of Object.entries(topics)) {
  t.test(topic, { skip }, async t => {
    for (const scenario of scenarios) await t.test(scenario.title, t => compare(t, scenario))
  })
}

async function compare(t: Test, { images = {}, steps }: Scenario) {
  await using stack = new AsyncDisposableStack()
  const both = await Promise.all([Side.ours(), Side.qemu()])
  for (const side of both) stack.use(side)
  const [ours, qemu] = both
  await Promise.all(both.map(side => side.makeImages(images)))
  for (const [index, step] of steps.entries()) {
    const [mine, theirs] = await Promise.all([ours.do(step), qemu.do(step)])
    judge(t, `${index + 1}. ${titleOf(step)}`, step, mine, theirs)
  }
  const [mine, theirs] = await Promise.all([ours.restOfEvents(), qemu.restOfEvents()])
  t.same(mine, theirs, 'what else was told')
  t.equal((await Promise.all([ours.stop(), qemu.stop()]))[0], '', 'ours had nothing to complain of')
  for (const [name, spec] of Object.entries(images)) await compareImages(t, name, spec, ours.folder, qemu.folder)
}

function judge(t: Test, title: string, { differs }: Step, mine: unknown, theirs: unknown) {
  if (!differs) return t.strictSame(mine, theirs, title)
  t.match(mine, differs.ours, `${title}: ${differs.because}`)
  t.notOk(isDeepStrictEqual(mine, theirs), `${title}: and QEMU does otherwise`)
}

function titleOf(step: Step) {
  switch (step.kind) {
    case 'command':
      return `${step.name} ${JSON.stringify(step.args)}`
    case 'event':
      return `until ${step.name} ${JSON.stringify(step.data)}`
    case 'tool':
      return [step.tool, ...step.args].join(' ')
    case 'content':
      return `content of ${step.uri}`
  }
}

async function compareImages(t: Test, name: string, { format = 'raw', scratch }: ImageSpec, mine: string, theirs: string) {
  if (scratch) return
  const { code, stdout, stderr } = await attempt('qemu-img', [
    'compare',
    '-f',
    format,
    '-F',
    format,
    join(mine, name),
    join(theirs, name),
  ])
  t.equal(code, 0, `${name}: ${stdout}${stderr}`)
}
