// The reference of the control socket names all that there is, and nothing else; and every difference from QEMU that the tests know.

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { commands } from '../../src/control/commands/index.ts'
import { eventTypes } from '../../src/control/event-types.ts'
import type { Difference, Scenario } from '../helpers/scenario.ts'
import {
  bitmapScenarios,
  commitScenarios,
  filterScenarios,
  jobScenarios,
  oddScenarios,
  scenarios,
  snapshotScenarios,
  streamScenarios,
} from '../interop/scenarios/index.ts'

const text = readFileSync(fileURLToPath(new URL('../../../docs/control-socket.md', import.meta.url)), 'utf8')

/** What stands in code at the beginning of a table's row, or in a heading. */
const named = new Set(
  text
    .split('\n')
    .flatMap(line => /^\| (`[^|]*`) \|/.exec(line)?.[1] ?? /^### (`.*)/.exec(line)?.[1] ?? [])
    .flatMap(list => [...list.matchAll(/`([^`]+)`/g)].map(([, name]) => name!)),
)

t.test('every command and event has its place in docs/control-socket.md, and nothing has that is not there', async t => {
  const all = [...commands, ...eventTypes].map(({ name }) => name)
  t.same(
    all.filter(name => !named.has(name)),
    [],
    'not named',
  )
  t.same(
    [...named].filter(name => !all.includes(name)),
    [],
    'named, and not there',
  )
})

t.test('each argument of our own commands is named', async t => {
  const section = text.slice(text.indexOf("## Stillpoint's commands"), text.indexOf('## Events'))
  const own = new Set([...section.replaceAll(/```[^]*?```/g, '').matchAll(/`([^`]+)`/g)].map(([, word]) => word))
  for (const command of commands.filter(({ name }) =>
    /^(checkpoint|backup|disk)-|^query-(backups|checkpoints|daemon|disk-jobs|machines)$/.test(name),
  )) {
    const shape = (command.arguments as { shape?: Record<string, unknown> }).shape ?? {}
    for (const argument of Object.keys(shape)) t.ok(own.has(argument), `${command.name} ${argument}`)
  }
})

t.test('each difference from QEMU that a scenario knows is told', async t => {
  const flat = text.replaceAll(/\s+/g, ' ').toLowerCase()
  const differences = Object.values({
    ...scenarios,
    ...jobScenarios,
    ...streamScenarios,
    ...commitScenarios,
    ...snapshotScenarios,
    ...oddScenarios,
    ...bitmapScenarios,
    ...filterScenarios,
  })
    .flat()
    .flatMap(({ steps, rest }: Scenario): (Difference | undefined)[] => [...steps.map(({ differs }) => differs), rest])
    .filter(difference => difference !== undefined)
  t.ok(differences.length > 5)
  for (const reason of new Set(differences.map(({ because }) => because)))
    t.ok(flat.includes(`- ${reason.toLowerCase()}`), reason)
})
