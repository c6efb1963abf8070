// Every command of docs/images.md, in its order, in a folder of its own; where the page shows an answer, it is the answer.

import { readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { native } from '../../src/base/native.ts'
import { CliWorker } from '../helpers/cli-worker.ts'
import { scratchFolder } from '../helpers/control.ts'
import { installed } from '../helpers/installed.ts'
import { diskContent } from '../helpers/random-bytes.ts'
import { missing } from '../helpers/tools.ts'

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

t.test('images are copied out of a session, and into an export, as docs/images.md says', { skip: missing('bash') }, async t => {
  await using stack = new AsyncDisposableStack()
  const site = await installed(stack, 'images.md')
  const bytes = diskContent(1 << 20, 2)
  const disk = (name: string) => `${name}: { disks: { root: { image: ${site.folder}/srv/disks/${name}.raw, format: raw } } }`
  await writeFile(`${site.folder}/srv/disks/db.raw`, bytes)
  await writeFile(`${site.folder}/srv/disks/spare.raw`, Buffer.alloc(bytes.length, 1))
  await site.drop('disks', `machines: { ${disk('db')}, ${disk('spare')} }\n`)
  await site.run('stillpoint config reload && stillpoint backup start db --pull --name nightly')
  const socket = `${site.folder}/run/stillpoint/nbd.sock`
  const [block, ...others] = [...page.matchAll(/^```sh\n([^]*?)^```$/gm)].map(([, text]) => text!)
  t.same(others, [])
  await site.run(
    `cd ${site.folder}\n${block!.replace('/run/stillpoint/nbd.sock', socket).replace('nbd://restore.example/root', `'nbd+unix:///spare/root?socket=${socket}'`)}`,
  )
  await using spare = await site.nbd('spare/root')
  t.ok((await spare.read(0, bytes.length)).equals(bytes))
})

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
