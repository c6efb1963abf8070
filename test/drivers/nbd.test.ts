// The nbd driver over nbdkit and qemu-nbd: the conformance suite, QMP's options, and servers that go away.

import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { checked } from '../../src/base/checked.ts'
import { InvalidParameter, IoError, NoSpace, NotSupported, ReadOnly } from '../../src/base/errors.ts'
import { anyRequest } from '../../src/block/aligned-io.ts'
import type { BlockNode, OpenContext } from '../../src/block/driver.ts'
import { nbd } from '../../src/drivers/nbd.ts'
import { raw } from '../../src/drivers/raw.ts'
import { blockNodeSuite, checkExtents, readAt } from '../helpers/block-node-suite.ts'
import { openContext } from '../helpers/open-context.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const isMissing = (program: string) =>
  spawnSync('sh', ['-c', `command -v ${program}`]).status !== 0 && `${program} is not installed`
const noNbdkit = isMissing('nbdkit')
const noQemu = isMissing('qemu-nbd')

function folder(stack: AsyncDisposableStack) {
  const path = mkdtempSync(join(tmpdir(), 'stillpoint-nbd-'))
  stack.defer(() => rmSync(path, { recursive: true }))
  return path
}

const greets = (path: string) =>
  new Promise<boolean>(resolve => {
    const socket = net.connect({ path })
    socket.once('error', () => resolve(false))
    socket.once('data', () => {
      socket.destroy()
      resolve(true)
    })
  })

async function stop(child: ChildProcess) {
  if (child.exitCode !== null || child.signalCode !== null) return
  const exit = once(child, 'exit')
  child.kill('SIGKILL')
  await exit
}

async function serve(stack: AsyncDisposableStack, program: string, args: string[], path: string) {
  const child = spawn(program, args, { stdio: 'ignore' })
  stack.defer(() => stop(child))
  for (let tries = 0; !(await greets(path)); tries++) {
    if (child.exitCode !== null || tries > 400) throw new Error(`${program} does not listen`)
    await sleep(25)
  }
  return { path, child }
}

function nbdkit(stack: AsyncDisposableStack, ...args: string[]) {
  const path = join(folder(stack), 'nbdkit.sock')
  return serve(stack, 'nbdkit', ['-f', '--exit-with-parent', '-U', path, ...args], path)
}

function qemuNbd(stack: AsyncDisposableStack, ...args: string[]) {
  const path = join(folder(stack), 'qemu.sock')
  return serve(stack, 'qemu-nbd', ['--persistent', '--shared=0', `--socket=${path}`, ...args], path)
}

const open = (path: string, more: object = {}, context: Partial<OpenContext> = {}) =>
  nbd.open(nbd.options.parse({ server: { type: 'unix', path }, ...more }), openContext(context))

function imageOf(content: Buffer, stack: AsyncDisposableStack) {
  const image = join(folder(stack), 'image')
  writeFileSync(image, content)
  return image
}

/** As the graph uses it: requests of any offset and length; and as long as the content, where servers have whole blocks only. */
function windowed(node: BlockNode, size: number, stack: AsyncDisposableStack) {
  stack.use(node)
  return raw.open(raw.options.parse({ size }), openContext({ children: { file: anyRequest(node) } }))
}

/** Whole blocks of this many bytes. */
const padded = (content: Buffer, unit: number) => Buffer.concat([content, Buffer.alloc((unit - (content.length % unit)) % unit)])

if (noNbdkit || noQemu) void t.test('the conformance suite', { skip: noNbdkit || noQemu || '' }, async () => {})
else {
  blockNodeSuite(
    t,
    'nbd over nbdkit',
    async (content, stack) =>
      windowed(await open((await nbdkit(stack, 'file', imageOf(content, stack))).path), content.length, stack),
    { runs: 10 },
  )
  blockNodeSuite(
    t,
    'nbd over nbdkit with blocks of 4 KiB, without zeroing or extents',
    async (content, stack) => {
      const filters = ['blocksize-policy', 'nozero', 'noextents'].map(filter => `--filter=${filter}`)
      const sizes = ['blocksize-minimum=4096', 'blocksize-preferred=4096', 'blocksize-maximum=64K']
      const image = imageOf(padded(content, 4096), stack)
      const { path } = await nbdkit(stack, ...filters, 'file', image, ...sizes, 'blocksize-error-policy=error')
      return windowed(await open(path), content.length, stack)
    },
    { runs: 6 },
  )
  blockNodeSuite(
    t,
    'nbd over qemu-nbd',
    async (content, stack) => {
      const { path } = await qemuNbd(stack, '--format=raw', '--discard=unmap', imageOf(content, stack))
      return windowed(await open(path), content.length, stack)
    },
    { runs: 6 },
  )
}

void t.test('a read-only export is read, and not written', { skip: noQemu }, async t => {
  await using stack = new AsyncDisposableStack()
  const content = randomBytes(1 << 20, 5)
  const { path } = await qemuNbd(stack, '--format=raw', '--read-only', imageOf(content, stack))
  await using node = await open(path, {}, { readOnly: true })
  t.ok((await readAt(node, 0, 1 << 20)).equals(content))
  await t.rejects(node.write(0, Buffer.alloc(512)), ReadOnly)
  await t.rejects(node.zero({ offset: 0, length: 512 }), ReadOnly)
  t.ok((await readAt(node, 0, 1 << 20)).equals(content))
})

void t.test('block sizes, holes and the file name are the server’s', { skip: noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const policy = ['blocksize-minimum=4096', 'blocksize-preferred=4096', 'blocksize-maximum=1M', 'blocksize-error-policy=error']
  const { path } = await nbdkit(stack, '--filter=blocksize-policy', 'memory', '8M', ...policy)
  await using node = await open(path, { export: 'a b' })
  t.match(node, { size: 8 << 20, alignment: 4096, maxTransfer: 1 << 20, filename: `nbd+unix:///a%20b?socket=${path}` })
  await node.write(1 << 20, randomBytes(4096, 1))
  const model = Buffer.alloc(8 << 20)
  randomBytes(4096, 1).copy(model, 1 << 20)
  const extents = await checkExtents(node, { offset: 0, length: node.size }, model)
  t.equal(extents.filter(({ zero, allocated }) => zero && !allocated).length, 2, 'a hole before and a hole behind')
  await t.rejects(node.resize(1 << 20), NotSupported)
})

void t.test('a server’s error keeps its words, and is what it says', { skip: noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const { path } = await nbdkit(stack, 'full', '1M')
  await using node = await open(path)
  await t.rejects(node.write(0, Buffer.alloc(4096)), NoSpace)
  await t.rejects(node.write(0, Buffer.alloc(4096)), {
    message: `nbd+unix:///?socket=${path}: WRITE of 4096 bytes at 0: the server says ENOSPC`,
  })
  t.ok((await readAt(node, 0, 4096)).equals(Buffer.alloc(4096)))
  await t.rejects(node.zero({ offset: 0, length: 512 }, { fast: true }), NotSupported)
})

void t.test('what cannot be opened says why, in QEMU’s words where it has some', { skip: noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const { path } = await nbdkit(stack, '--readonly', 'memory', '1M')
  const nowhere = nbd.options.parse({ server: { type: 'inet', host: '127.0.0.1', port: '1' } })
  await t.rejects(nbd.open(nowhere, openContext()), new IoError("Failed to connect to '127.0.0.1:1': Connection refused"))
  await t.rejects(open('/nonexistent'), new IoError("Failed to connect to '/nonexistent': No such file or directory"))
  await t.rejects(open(path), new ReadOnly('request on write denied without write permission'))
  await t.rejects(open(path, { export: 'x'.repeat(4097) }), new InvalidParameter('export name too long to send to server'))
  const withObject = (object: unknown) => open(path, { 'tls-creds': 't' }, { object: () => object })
  await t.rejects(withObject(undefined), new InvalidParameter("No TLS credentials with id 't'"))
  await t.rejects(withObject({ 'qom-type': 'throttle-group' }), new InvalidParameter("Object with id 't' is not TLS credentials"))
  const serverSide = { 'qom-type': 'tls-creds-anon', endpoint: 'server' }
  await t.rejects(withObject(serverSide), new InvalidParameter('Expected TLS credentials for a client endpoint'))
  await t.rejects(withObject({ ...serverSide, endpoint: 'client' }), { name: 'IoError', message: /refuses STARTTLS/ })
  for (const name of ['reconnect-delay', 'open-timeout'])
    for (const seconds of [-1, 2 ** 32])
      t.throws(
        () => checked(nbd.options, { server: { type: 'unix', path }, [name]: seconds }),
        new InvalidParameter(`Parameter '${name}' expects uint32_t`),
      )
  const port = nbd.options.parse({ server: { type: 'inet', host: 'h', port: 'nbd' } })
  await t.rejects(nbd.open(port, openContext()), InvalidParameter)
})

void t.test('an export is read over TLS with the key of an object', { skip: noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const dir = folder(stack)
  writeFileSync(join(dir, 'keys.psk'), 'alice:0123456789abcdef0123456789abcdef\n')
  const { path } = await nbdkit(stack, '--tls=require', `--tls-psk=${join(dir, 'keys.psk')}`, 'memory', '1M')
  const object = () => ({ 'qom-type': 'tls-creds-psk', endpoint: 'client', dir, username: 'alice' })
  await using node = await open(path, { 'tls-creds': 't' }, { object })
  await node.write(512, randomBytes(512, 2))
  t.ok((await readAt(node, 512, 512)).equals(randomBytes(512, 2)))
})

void t.test('open-timeout waits for a server that is not there yet', { skip: noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const path = join(folder(stack), 'later.sock')
  const opening = open(path, { 'open-timeout': 20 })
  await sleep(300)
  await serve(stack, 'nbdkit', ['-f', '--exit-with-parent', '-U', path, 'memory', '1M'], path)
  await using node = await opening
  t.equal(node.size, 1 << 20)
})

void t.test('requests wait for a lost server for reconnect-delay, and without it fail', { skip: noNbdkit }, async t => {
  for (const delay of [20, 0]) {
    await using stack = new AsyncDisposableStack()
    const image = imageOf(randomBytes(1 << 20, 3), stack)
    const { path, child } = await nbdkit(stack, 'file', image)
    await using node = await open(path, { 'reconnect-delay': delay })
    await node.flush()
    await stop(child)
    rmSync(path)
    await sleep(50)
    const reading = readAt(node, 4096, 4096)
    const writing = node.write(8192, randomBytes(512, 4))
    if (delay === 0)
      await Promise.all([t.rejects(reading as Promise<unknown> as Promise<void>, IoError), t.rejects(writing, IoError)])
    await sleep(200)
    await serve(stack, 'nbdkit', ['-f', '--exit-with-parent', '-U', path, 'file', image], path)
    if (delay > 0) {
      t.ok((await reading).equals(randomBytes(1 << 20, 3).subarray(4096, 8192)))
      await writing
      t.ok((await readAt(node, 8192, 512)).equals(randomBytes(512, 4)))
      continue
    }
    for (let tries = 0; tries < 100; tries++) {
      if (
        await readAt(node, 0, 512).then(
          () => true,
          () => false,
        )
      )
        break
      await sleep(50)
    }
    t.ok(await readAt(node, 0, 512), 'and it is there again when the server is')
  }
})
