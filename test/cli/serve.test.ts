// stillpoint serve: a restore point over NBD, judged by qemu-img, qemu-io and our client.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { openTarget } from '../../src/push/target.ts'
import { scratchFolder } from '../helpers/control.ts'
import { newRepository, pushDisks, sourceOf } from '../helpers/push-point.ts'
import { diskContent, generator, randomBytes } from '../helpers/random-bytes.ts'
import { silent } from '../helpers/s3.ts'
import { MAIN, stillpoint } from '../helpers/stillpoint.ts'
import { attempt, missing, run } from '../helpers/tools.ts'

const CHUNK = 65536
const SINCE = 'qemu:dirty-bitmap:since'
const skip = missing('qemu-img', 'qemu-io')

const stack = new AsyncDisposableStack()
t.teardown(() => stack.disposeAsync())
const folder = await scratchFolder(stack)
const path = (name: string) => `${folder}/${name}`
const config = path('stillpoint.yaml')
writeFileSync(config, JSON.stringify({ repositories: { local: { plugin: 'file', path: 'backup' } } }))

const older = { root: diskContent(120 * CHUNK, 1), data: diskContent(9 * CHUNK + 1536 + 7, 2) }
// It has grown since.
const newer = { root: Buffer.concat([older.root, diskContent(20 * CHUNK + 512, 4)]), data: older.data }
newer.root.set(randomBytes(1000, 3), 5 * CHUNK + 100)
newer.root.fill(0, 40 * CHUNK, 44 * CHUNK)
const target = stack.use(await openTarget({ plugin: 'file', path: path('backup') }, { log: silent }))
const repository = await newRepository(target)
const pushed = async (disks: typeof older) => {
  const { key } = await pushDisks(repository, [
    { name: 'root', source: sourceOf(disks.root) },
    { name: 'data', source: sourceOf(disks.data) },
  ])
  return key.slice('points/'.length)
}
const first = await pushed(older)
const second = await pushed(newer)
writeFileSync(path('root'), newer.root)
writeFileSync(path('data'), newer.data)

async function serve(...args: string[]) {
  const child = spawn(process.execPath, [MAIN, 'serve', 'local', ...args, '--config', config, '--json'])
  const exit = once(child, 'exit')
  let said = ''
  let failed = ''
  child.stdout.on('data', (data: Buffer) => (said += data.toString()))
  child.stderr.on('data', (data: Buffer) => (failed += data.toString()))
  while (!said.endsWith('\n')) {
    if (child.exitCode !== null) throw new Error(failed)
    await sleep(20)
  }
  const disks = said
    .trim()
    .split('\n')
    .map(line => JSON.parse(line) as { disk: string; size: number; uri: string; overlay?: string; point?: string })
  return {
    disks,
    /** Waits until it has said one of them. */
    async says(...words: readonly string[]) {
      while (!words.some(word => `${said}${failed}`.includes(word))) {
        if (child.exitCode !== null) throw new Error(failed)
        await sleep(20)
      }
    },
    async kill() {
      child.kill('SIGKILL')
      await exit
    },
    async stop() {
      child.kill('SIGTERM')
      return exit
    },
  }
}

t.test('qemu-img finds the disks as they were, and an overlay over one can be written', { skip }, async t => {
  const server = await serve(second, '--socket', path('nbd.sock'))
  t.same(
    server.disks.map(({ disk, size }) => [disk, size]),
    [
      ['root', newer.root.length],
      ['data', newer.data.length],
    ],
  )
  for (const { disk, uri } of server.disks)
    t.match(await attempt('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', uri, path(disk)]), { code: 0 }, disk)
  const [root] = server.disks
  const map = JSON.parse(await run('qemu-img', ['map', '--output=json', root!.uri])) as { zero: boolean; length: number }[]
  const holes = map.filter(({ zero }) => zero).reduce((sum, { length }) => sum + length, 0)
  t.ok(holes > 20 * CHUNK && holes < newer.root.length, 'clients see the holes')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', root!.uri, path('try.qcow2')])
  await run('qemu-io', ['-f', 'qcow2', '-c', 'write -P 7 100k 3k', '-c', 'read -P 7 100k 3k', path('try.qcow2')])
  t.match(await attempt('qemu-io', ['-f', 'raw', '-c', 'write 0 512', root!.uri]), { code: 1 }, 'and the restore point cannot')
  t.same(await server.stop(), [0, null])
  t.notOk(existsSync(path('nbd.sock')))
  t.same(
    readdirSync(path('backup/sessions')).filter(name => !name.startsWith('.')),
    [],
  )
})

t.test('reads of any kind at once are right; one disk needs no name; since says what changed', async t => {
  const server = await serve(`${second}/root`, '--since', first)
  const { uri } = server.disks[0]!
  t.equal(server.disks.length, 1)
  const client = await NbdClient.connect(uri.replace('/root?', '/?'), { contexts: [SINCE] })
  const next = generator(5)
  const reads = Array.from({ length: 60 }, async (_, index) => {
    const length = 1 + (next() % (index % 10 === 0 ? 40 * CHUNK : 5000))
    const offset = next() % (newer.root.length - length)
    const into = await client.read(offset, length)
    return newer.root.subarray(offset, offset + length).equals(into)
  })
  t.ok((await Promise.all(reads)).every(Boolean))
  const changed = new Set<number>()
  for await (const { offset, length, status } of client.extents({ contexts: [SINCE] }))
    if (status[SINCE] === 1) for (let at = offset; at < offset + length; at += CHUNK) changed.add(Math.floor(at / CHUNK))
  const expected = Array.from({ length: Math.ceil(newer.root.length / CHUNK) }, (_, chunk) => chunk).filter(
    chunk =>
      chunk >= 120 ||
      !newer.root.subarray(chunk * CHUNK, (chunk + 1) * CHUNK).equals(older.root.subarray(chunk * CHUNK, (chunk + 1) * CHUNK)),
  )
  t.same([...changed], expected)
  const forgotten = await stillpoint(['point', 'forget', 'local', first, '--config', config])
  t.match(forgotten, { code: 11, stderr: /in use/ }, 'what is served stays')
  await client[Symbol.asyncDispose]()
  t.same(await server.stop(), [0, null])
})

const pins = () => readdirSync(path('backup/pinned'), { recursive: true, withFileTypes: true }).filter(entry => entry.isFile())

t.test('a disk that is written is an overlay; streamed, it stands alone, and needs the repository no more', { skip }, async t => {
  const overlay = path('root.qcow2')
  const args = [`${second}/root`, '--writable', '--overlay', overlay, '--socket', path('nbd.sock')]
  const model = Buffer.concat([newer.root])
  {
    const server = await serve(...args)
    t.match(server.disks, [{ disk: 'root', size: model.length, overlay, point: second }])
    const client = await NbdClient.connect(server.disks[0]!.uri)
    const bytes = randomBytes(3 * CHUNK, 9)
    await client.write(7 * CHUNK + 100, bytes)
    model.set(bytes, 7 * CHUNK + 100)
    await client.zero(30 * CHUNK, 2 * CHUNK)
    model.fill(0, 30 * CHUNK, 32 * CHUNK)
    t.ok((await client.read(0, model.length)).equals(model))
    t.equal(pins().length, 1, 'what the overlay needs is pinned')
    await client[Symbol.asyncDispose]()
    t.same(await server.stop(), [0, null])
  }
  t.equal(pins().length, 1, 'also while nobody serves it')
  t.match(await stillpoint(['serve', 'local', `${first}/root`, '--writable', '--overlay', overlay, '--config', config]), {
    code: 11,
    stderr: /is an overlay of .*: serve that one, or name another file/,
  })
  t.match(await stillpoint(['serve', 'local', second, '--writable', '--overlay', overlay, '--config', config]), {
    code: 1,
    stderr: /has 2 disks: name one, as in/,
  })
  {
    const server = await serve(...args, '--stream')
    const client = await NbdClient.connect(server.disks[0]!.uri)
    await client.write(100, Buffer.from('while it is streamed'))
    model.set(Buffer.from('while it is streamed'), 100)
    await server.says('"standsAlone":true')
    t.ok((await client.read(0, model.length)).equals(model))
    await client.flush()
    await client[Symbol.asyncDispose]()
    t.same(await server.stop(), [0, null])
  }
  t.equal(pins().length, 0)
  writeFileSync(path('model'), model)
  const info = JSON.parse(await run('qemu-img', ['info', '--output=json', overlay])) as object
  t.notOk('backing-filename' in info)
  t.match(await attempt('qemu-img', ['check', overlay]), { code: 0 })
  t.match(await attempt('qemu-img', ['compare', overlay, path('model')]), { code: 0 })
  const alone = await serve(`${second}/root`, '--writable', '--overlay', overlay, '--stream')
  t.notOk('point' in alone.disks[0]!)
  t.same(await alone.stop(), [0, null])
  t.equal(pins().length, 0)
})

t.test('it goes on after each kill, with every write that was flushed', { skip }, async t => {
  const seed = Math.floor(Math.random() * 2 ** 31)
  const next = generator(seed)
  const overlays = path('overlays')
  mkdirSync(overlays)
  const model = Buffer.concat([newer.root])
  const args = [second, '--writable', '--overlay', overlays, '--stream']
  for (let kill = 0; kill < 4; kill++) {
    const server = await serve(...args)
    t.same(
      server.disks.map(({ disk, overlay }) => [disk, overlay]),
      [
        ['root', `${overlays}/root.qcow2`],
        ['data', `${overlays}/data.qcow2`],
      ],
    )
    const client = await NbdClient.connect(server.disks[0]!.uri)
    t.ok((await client.read(0, model.length)).equals(model), `seed ${seed}, after kill ${kill}`)
    for (let count = next() % 8; count > 0; count--) {
      const bytes = randomBytes(1 + (next() % CHUNK), next())
      const offset = next() % (model.length - bytes.length)
      await client.write(offset, bytes)
      model.set(bytes, offset)
    }
    await client.flush()
    await server.kill()
    await client[Symbol.asyncDispose]().catch((error: unknown) => t.comment(error))
  }
  const server = await serve(...args)
  await server.says('data.qcow2","standsAlone":true', "data.qcow2' stands alone already")
  await server.says('root.qcow2","standsAlone":true', "root.qcow2' stands alone already")
  t.same(await server.stop(), [0, null])
  writeFileSync(path('model'), model)
  writeFileSync(path('data'), older.data)
  for (const [disk, raw] of [
    ['root', 'model'],
    ['data', 'data'],
  ] as const) {
    t.match(
      await attempt('qemu-img', ['check', `${overlays}/${disk}.qcow2`]),
      { code: /^[03]$/ },
      'leaks at most, of what was killed',
    )
    t.match(await attempt('qemu-img', ['compare', `${overlays}/${disk}.qcow2`, path(raw)]), { code: 0 }, `seed ${seed}`)
  }
  t.equal(pins().length, 0)
})

t.test('what is damaged is an error of the reads that need it, and of no others', async t => {
  const packs = readdirSync(path('backup/packs'), { recursive: true, withFileTypes: true }).filter(entry => entry.isFile())
  const sizes = packs.map(({ parentPath, name }) => `${parentPath}/${name}`).sort((a, b) => statSync(b).size - statSync(a).size)
  truncateSync(sizes[0]!, statSync(sizes[0]!).size >> 1)
  const server = await serve(`${first}/root`)
  const client = await NbdClient.connect(server.disks[0]!.uri)
  let failed = 0
  for (let chunk = 0; chunk < 120; chunk++) {
    const read = await client.read(chunk * CHUNK, CHUNK).catch((error: unknown) => error)
    if (Buffer.isBuffer(read)) t.ok(older.root.subarray(chunk * CHUNK, (chunk + 1) * CHUNK).equals(read))
    else failed++
  }
  t.ok(failed > 0 && failed < 100, `${failed} cannot be read`)
  await client[Symbol.asyncDispose]()
  t.same(await server.stop(), [0, null])
  t.match(await stillpoint(['serve', 'local', `${first}/swap`, '--config', config]), { code: 1, stderr: /has no disk 'swap'/ })
})
