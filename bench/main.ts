// npm run bench [-- PART...]: measurements against the goals, and against other people's programs in turns. What they find is printed, and
// written to bench/results with the date and the machine.

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { messageOf } from '../src/base/errors.ts'
import { root } from './demo/tools.ts'
import { bitmaps } from './parts/bitmaps.ts'
import { increments } from './parts/increments.ts'
import { nbd } from './parts/nbd.ts'
import { push } from './parts/push.ts'
import { qcow2 } from './parts/qcow2.ts'
import { Report, type Part } from './report.ts'

const parts: readonly Part[] = [nbd, qcow2, bitmaps, push, increments]

const USAGE = `usage: npm run bench [-- [PART...] [--rounds N] [--folder DIR]]
${parts.map(({ name, title }) => `  ${name.padEnd(11)} ${title}`).join('\n')}
All of them without a name. --rounds: how often those that are compared take turns (3). --folder: where images are made, a temporary one.`

function asked() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      rounds: { type: 'string', default: '3' },
      folder: { type: 'string', default: tmpdir() },
      help: { type: 'boolean' },
    },
  })
  const rounds = Number(values.rounds)
  const unknown = positionals.find(name => !parts.some(part => part.name === name))
  if (unknown !== undefined) throw new Error(`there is no part '${unknown}'`)
  if (!Number.isInteger(rounds) || rounds < 1) throw new Error('--rounds must be a number from 1 on')
  const chosen = parts.filter(({ name }) => positionals.length === 0 || positionals.includes(name))
  return { chosen, rounds, folder: values.folder, help: values.help === true }
}

async function bench({ chosen, rounds, folder }: ReturnType<typeof asked>) {
  const report = new Report()
  const scratch = await mkdtemp(join(folder, 'stillpoint-bench-'))
  try {
    for (const part of chosen) await part.measure(report, { rounds, folder: scratch })
  } finally {
    await rm(scratch, { recursive: true })
  }
  const path = await report.write(
    join(root, 'bench/results'),
    chosen.map(({ name }) => name),
  )
  console.log(`\n${path}`)
  if (report.missed.length > 0) console.log(`${report.missed.length} goals are missed.`)
}

let options: ReturnType<typeof asked> | undefined
try {
  options = asked()
} catch (error) {
  console.error(`${messageOf(error)}\n${USAGE}`)
  process.exitCode = 2
}
if (options?.help) console.log(USAGE)
else if (options) await bench(options)
