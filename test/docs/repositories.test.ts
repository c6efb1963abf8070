// Every command of docs/repositories.md, in its order, with its configuration, in a folder of its own.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { Appliance } from '../../src/appliance.ts'
import { createLog } from '../../src/base/log.ts'
import { loadSettings } from '../../src/settings/load.ts'
import { CliWorker } from '../helpers/cli-worker.ts'
import { scratchFolder } from '../helpers/qemu.ts'
import { diskContent } from '../helpers/random-bytes.ts'
import { MAIN } from '../helpers/stillpoint.ts'
import { attempt, missing } from '../helpers/tools.ts'

const page = readFileSync(fileURLToPath(new URL('../../../docs/repositories.md', import.meta.url)), 'utf8')
const commands = [...page.matchAll(/^```console\n([^]*?)^```$/gm)].flatMap(([, block]) =>
  block!
    .split('\n')
    .filter(line => line.startsWith('$ '))
    .map(line => line.slice(2)),
)

/** As a shell takes it apart, so far as the page needs that. */
const wordsOf = (command: string) => [...command.matchAll(/'([^']*)'|(\S+)/g)].map(([, quoted, plain]) => quoted ?? plain!)

t.test('the commands of docs/repositories.md do what the page says', { skip: missing('qemu-img') }, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const inFolder = (text: string) =>
    text.replaceAll(/\/(var\/lib\/images|backup|restore|etc\/stillpoint|dev\/vg0)\b/g, `${folder}/$1`)
  for (const name of ['var/lib/images', 'backup', 'restore', 'etc/stillpoint', 'dev/vg0'])
    mkdirSync(`${folder}/${name}`, { recursive: true })
  const root = diskContent(40 * 65536, 1)
  const data = diskContent(9 * 65536 + 512, 2)
  writeFileSync(`${folder}/var/lib/images/root.raw`, root)
  writeFileSync(`${folder}/var/lib/images/data.raw`, data)
  writeFileSync(`${folder}/dev/vg0/root`, Buffer.alloc(root.length, 7))
  writeFileSync(`${folder}/etc/stillpoint/offsite.key`, 'correct horse\n')
  const config = `${folder}/etc/stillpoint/stillpoint.yaml`
  const socket = `${folder}/control.sock`
  const whole = inFolder(/^```yaml\n([^]*?)^```$/m.exec(page)![1]!)
  writeFileSync(config, whole)
  t.ok((await loadSettings(config)).repositories['offsite']!.key)
  // To make a key out of a passphrase takes long on purpose, and each command does it.
  const yaml = whole.replace(/^ +encryption: .*\n/m, '')
  writeFileSync(config, `state: ../../state\ncontrol: { socket: ${socket} }\nnbd: []\n${yaml}`)
  const log = createLog('error', { write: line => t.comment(line) }, { journal: true })
  const daemon = stack.use(new AsyncDisposableStack())
  daemon.use(await Appliance.start(await loadSettings(config), log))
  const worker = stack.use(new CliWorker({ STILLPOINT_SOCKET: socket }))

  const withConfig = (words: readonly string[]) =>
    ['repo', 'point', 'restore', 'serve'].includes(words[0]!) ? [...words, '--config', config] : words
  let older = 'none'
  t.ok(commands.length > 20)
  for (const command of commands) {
    // No daemon is needed from there on.
    if (command.includes('--to /restore')) await daemon.disposeAsync()
    const [program, ...words] = wordsOf(inFolder(command.replace('db/20261125T020000', older)))
    if (words.at(-1) === '&') {
      const server = spawn(process.execPath, [MAIN, ...withConfig(words.slice(0, -1))], { stdio: ['ignore', 'pipe', 'inherit'] })
      stack.defer(async () => {
        server.kill()
        await once(server, 'exit')
      })
      await once(server.stdout, 'data')
      continue
    }
    const { code, stdout, stderr } = await (program === 'stillpoint'
      ? worker.run(...withConfig(words))
      : attempt(program!, words))
    t.equal(code, 0, `${command}: ${stderr}`)
    if (command === 'stillpoint point list offsite' && older === 'none') older = stdout.split('\n')[2]!.split(' ')[0]!
    await sleep(1) // two instants
  }
  t.ok(readFileSync(`${folder}/restore/root.raw`).equals(root))
  t.ok(readFileSync(`${folder}/restore/data.raw`).equals(data))
  t.ok(readFileSync(`${folder}/restore/from-the-archive.raw`).equals(root))
  t.ok(readFileSync(`${folder}/restore/what-there-is.raw`).equals(data))
  t.ok(readFileSync(`${folder}/dev/vg0/root`).equals(root))
  for (const image of ['root.qcow2', 'overlay.qcow2'])
    t.match(
      await attempt('qemu-img', [
        'compare',
        '-f',
        'qcow2',
        '-F',
        'raw',
        `${folder}/restore/${image}`,
        `${folder}/var/lib/images/root.raw`,
      ]),
      {
        code: 0,
      },
    )
})
