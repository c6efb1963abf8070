// Every command of docs/images.md, in its order, in a folder of its own; where the page shows an answer, it is the answer.

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { native } from '../../src/base/native.ts'
import { CliWorker } from '../helpers/cli-worker.ts'
import { scratchFolder } from '../helpers/control.ts'

const page = readFileSync(fileURLToPath(new URL('../../../docs/images.md', import.meta.url)), 'utf8')

/** Each command with the lines that follow it. */
const commands = [...page.matchAll(/^```console\n([^]*?)^```$/gm)].flatMap(([, block]) =>
  block!
    .split(/^\$ /m)
    .slice(1)
    .map(text => {
      const [command, ...answer] = text.split('\n')
      return { command: command!, answer: answer.join('\n') }
    }),
)

t.test('the commands of docs/images.md do what the page says', { skip: !native && 'koffi does not load here' }, async t => {
  await using stack = new AsyncDisposableStack()
  process.chdir(await scratchFolder(stack))
  stack.defer(() => process.chdir('/'))
  const worker = stack.use(new CliWorker())
  t.ok(commands.length > 15)
  for (const { command, answer } of commands) {
    const [program, ...args] = command.split(' ')
    t.equal(program, 'stillpoint')
    const { code, stdout, stderr } = await worker.run(...args)
    t.equal(code, 0, `${command}: ${stderr}`)
    if (answer !== '') t.equal(stdout, answer, command)
  }
})
