// The README's examples, run as they are there: only the places of sockets and keys are put in, and what they print is compared with
// the comment behind it.

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { formatWithOptions } from 'node:util'
import t from 'tap'
import { makePki } from './helpers/pki.ts'
import { folder, missing, nbdkit, qemuNbd, run } from './helpers/servers.ts'

const packageRoot = fileURLToPath(new URL('../../', import.meta.url))
const readme = readFileSync(join(packageRoot, 'README.md'), 'utf8')

/** The examples, by the heading they stand under. */
const examples = new Map<string, string>()
for (const section of readme.split(/^#+ /m)) {
  const code = /^```ts\n(.*?)^```$/ms.exec(section)?.[1]
  if (code) examples.set(section.slice(0, section.indexOf('\n')).replaceAll('`', ''), code)
}

/** Runs one, and says what it printed and what its comments say it prints. */
async function runExample(heading: string, places: Record<string, string>) {
  let code = examples.get(heading)!
  for (const [written, real] of Object.entries(places)) code = code.replaceAll(written, real)
  const wanted = [...code.matchAll(/console\.log\(.*\),? \/\/ (.*)$/gm)].map(([, comment]) => comment)
  const file = join(packageRoot, 'dist/test/readme', `${heading.replaceAll(/\W+/g, '-')}-${process.pid}.mjs`)
  mkdirSync(join(packageRoot, 'dist/test/readme'), { recursive: true })
  const printed: string[] = []
  const log = (...values: unknown[]) => printed.push(formatWithOptions({ colors: false }, ...values))
  ;(globalThis as Record<string, unknown>)['readmeConsole'] = { log }
  writeFileSync(file, `const console = globalThis.readmeConsole\n${code}`)
  await import(file)
  return { printed, wanted: wanted as string[] }
}

const SOCKET = '/tmp/disk.sock'
const skip = missing('nbdkit', 'qemu-nbd', 'qemu-img', 'qemu-io')

t.test('every example is run below', async t => {
  t.same(
    [...examples.keys()],
    [
      'A tour',
      'What is where',
      'An incremental backup',
      'From one server to another',
      'Errors',
      'Looking around',
      'TLS',
      'A way of your own',
      'The other doors',
    ],
  )
})

t.test('the tour does what it says', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const memory = await nbdkit(stack, 'memory', '16M')
  const other = await nbdkit(stack, 'memory', '16M')
  const tour = await runExample('A tour', { [SOCKET]: memory.socket })
  t.same(tour.printed, tour.wanted)
  const where = await runExample('What is where', { [SOCKET]: memory.socket })
  t.match(where.printed.join('\n'), /^0 \d+ data\n\d+ \d+ zero/)
  const copy = await runExample('From one server to another', { [SOCKET]: memory.socket, '/tmp/other.sock': other.socket })
  t.same(copy.printed, copy.wanted)
  const own = await runExample('A way of your own', {})
  t.same(own.printed, own.wanted)
  const doors = await runExample('The other doors', {})
  t.same(doors.printed, doors.wanted)
})

t.test('the incremental backup and the look around do what they say', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const image = join(folder(stack), 'image.qcow2')
  run('qemu-img', 'create', '-q', '-f', 'qcow2', image, '16M')
  run('qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 16M', image)
  run('qemu-img', 'bitmap', '--add', image, 'b0')
  run('qemu-io', '-f', 'qcow2', '-c', 'write -P 2 1M 64k', '-c', 'write -z 8M 1M', image)
  run('qemu-img', 'bitmap', '--disable', image, 'b0')
  const dirty = await qemuNbd(stack, '--format=qcow2', '--read-only', '--bitmap=b0', image)
  const backup = await runExample('An incremental backup', { [SOCKET]: dirty.socket })
  t.same(backup.printed.sort(), backup.wanted.sort())
  const named = await qemuNbd(stack, '--format=qcow2', '--read-only', '--export-name=disk', image)
  const around = await runExample('Looking around', { [SOCKET]: named.socket })
  t.same(around.printed, around.wanted)
})

t.test('the errors are those it says', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const full = await nbdkit(stack, 'full', '16M')
  const { printed, wanted } = await runExample('Errors', { [SOCKET]: full.socket })
  t.same(printed, wanted)
})

t.test('TLS goes as it says', { skip: skip || missing('openssl') }, async t => {
  await using stack = new AsyncDisposableStack()
  const pki = makePki(stack)
  const server = await nbdkit(stack, '--tls=require', '--tls-verify-peer', `--tls-certificates=${pki}`, 'memory', '16M')
  const { printed, wanted } = await runExample('TLS', { [SOCKET]: server.socket, '/tmp/pki': pki })
  t.same(printed, wanted)
})
