// Every command of docs/disks.md, in its order, on a daemon with two disks to which guests write all the time.

import { readFile, writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { diskDaemon, makeDisk, SIZE, Writer } from '../helpers/disk-daemon.ts'
import { qemuImg, scratchFolder } from '../helpers/qemu.ts'
import { stillpointInThread } from '../helpers/stillpoint.ts'
import { attempt, missing } from '../helpers/tools.ts'

const page = await readFile(fileURLToPath(new URL('../../../docs/disks.md', import.meta.url)), 'utf8')
const commands = [...page.matchAll(/^\$ (.*)$/gm)].map(([, command]) => command!)

t.test('the commands of docs/disks.md do what the page says, and the disks are whole', { skip: missing('qemu-img') }, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  process.chdir(folder)
  stack.defer(() => process.chdir('/'))
  const content = await makeDisk(folder, 'raw', ['root', 'data'])
  const contents = { root: content, data: Buffer.from(content) }
  const daemon = stack.use(await diskDaemon(folder))
  const env = { STILLPOINT_SOCKET: `${folder}/control.sock` }
  const stillpoint = (...args: string[]) => stillpointInThread(args, env)
  await using root = new Writer(await daemon.nbd('db/root'), contents.root)
  await using data = new Writer(await daemon.nbd('db/data'), contents.data, 12)
  t.ok(commands.length > 10)
  for (const command of commands) {
    await root.atLeast(2)
    await data.atLeast(2)
    const [program, ...args] = command.split(' ')
    if (program === 'stillpoint') {
      const { code, stderr } = await stillpoint(...args)
      t.equal(code, 0, `${command}: ${stderr}`)
    } else {
      const sized = args.map(arg => (arg === '4M' ? String(SIZE) : arg))
      const { code, stderr, stdout } = await attempt(program!, sized)
      t.equal(code, 0, `${command}: ${stderr}`)
      if (args[0] === 'info') t.match(stdout, /backing file: moved\.raw \(actual path: there\/moved\.raw\)/)
    }
  }
  const jobs = await stillpoint('disk', 'list', '--jobs')
  t.match(jobs.stdout, /db\/root +copy +done +100 % .*there\/root\.qcow2/)
  t.match(jobs.stdout, /db\/data +pull +done/)

  const speed = ['--speed', '64K']
  t.match(await stillpoint('disk', 'copy', 'db/data', 'slow.qcow2', ...speed, '--json'), { code: 0, stdout: /"ready":false/ })
  t.match(await stillpoint('disk', 'pivot', 'db/data'), { code: 11, stderr: /block copy still active/ })
  t.match(await stillpoint('disk', 'snapshot', 'db', '--to', '.', '--name', 'x'), { code: 11, stderr: /block copy still active/ })
  t.match(await stillpoint('disk', 'abort', 'db/data', '--async'), { code: 0 })
  for (const [args, stderr] of [
    [['copy', 'db/data', 'a', '--raw', '--format', 'qcow2'], /contradict/],
    [['copy', 'db/data', 'a', '--pivot', '--finish'], /say one of them/],
    [['copy', 'db', 'a'], /'db' is no disk/],
    [['copy', 'db/data', 'a', '--speed', 'fast'], /must be a size/],
    [['commit', 'db/data', '--pivot'], /say --active too/],
    [['snapshot', 'db'], /say where the overlays are to be/],
    [['snapshot', 'db', '--disk', 'root'], /must be DISK=FILE/],
  ] as const)
    t.match(await stillpoint('disk', ...args), { code: 2, stderr }, args.join(' '))
  t.match(await stillpoint('disk', 'copy', 'db/data', 'no/folder', '--wait'), { code: 1, stderr: /Could not create/ })

  await root.stop()
  await data.stop()
  await daemon.stop()
  for (const [image, wanted] of [
    ['there/root.qcow2', contents.root],
    ['data.monday.qcow2', contents.data],
  ] as const) {
    await writeFile('wanted', wanted)
    t.match(await qemuImg('compare', '-f', 'raw', '-F', 'qcow2', 'wanted', image), 'identical', image)
  }
})
