// Does scenarios with qemu-storage-daemon and with our daemon: replies, events, bitmaps, block status, data and the images afterwards must be
// the same. What differs on purpose says so at its step, with the reason, and fails when it differs no more.

import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import t, { type Test } from 'tap'
import { qsdMissing } from './qemu-storage-daemon.ts'
import type { Difference, ImageSpec, Scenario, Step } from './scenario.ts'
import { Side } from './side.ts'
import { attempt, missing } from './tools.ts'

const skip = qsdMissing || missing('qemu-img', 'qemu-io', 'nbdinfo', 'nbdcopy')

/** A test for each topic; `SCENARIO` in the environment, a part of titles, leaves the others out. */
export function compareAll(topics: Readonly<Record<string, readonly Scenario[]>>) {
  const wanted = new RegExp(process.env['SCENARIO'] ?? '')
  for (const [topic, all] of Object.entries(topics)) {
    t.test(topic, { skip }, async t => {
      for (const scenario of all) if (wanted.test(scenario.title)) await t.test(scenario.title, t => compare(t, scenario))
    })
  }
  t.test('in the end ours stops, and has had nothing to complain of', { skip }, async t => {
    t.equal((await pair?.ours.stop()) ?? '', '')
    await daemons.disposeAsync()
  })
}

/** The two daemons, started anew when a scenario has left them unusable. */
const daemons = new AsyncDisposableStack()
let pair: { readonly ours: Side; readonly qemu: Side } | undefined

async function started() {
  if (!pair) {
    const [ours, qemu] = await Promise.all([Side.ours(), Side.qemu()])
    daemons.use(ours)
    daemons.use(qemu)
    pair = { ours, qemu }
  }
  return pair
}

async function compare(t: Test, { images = {}, steps, rest }: Scenario) {
  const { ours, qemu } = await started()
  pair = undefined // until this has gone well
  await Promise.all([ours.begin(images), qemu.begin(images)])
  for (const [index, step] of steps.entries()) {
    const [mine, theirs] = await Promise.all([ours.do(step), qemu.do(step)])
    judge(t, `${index + 1}. ${titleOf(step)}`, step.differs, mine, theirs)
    if (!ours.lives || !qemu.lives) return
  }
  const [mine, theirs] = await Promise.all([ours.restOfEvents(), qemu.restOfEvents()])
  judge(t, 'what else was told', rest, mine, theirs)
  const asNew = await Promise.all([ours.end(), qemu.end()])
  t.ok(asNew[0], 'ours is as new')
  if (asNew.every(Boolean)) pair = { ours, qemu }
  for (const [name, spec] of Object.entries(images)) await compareImages(t, name, spec, ours.folder, qemu.folder)
}

function judge(t: Test, title: string, differs: Difference | undefined, mine: unknown, theirs: unknown) {
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
  const both = [join(mine, name), join(theirs, name)] as const
  const [one, other] = await Promise.all(both.map(path => readFile(path)))
  if (one!.equals(other!)) return void t.pass(`${name}: the same bytes`)
  const { code, stdout, stderr } = await attempt('qemu-img', ['compare', '-f', format, '-F', format, ...both])
  t.equal(code, 0, `${name}: ${stdout}${stderr}`)
}
