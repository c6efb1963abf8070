// stillpoint serve --writable: overlays over a restore point, streamed until they stand alone, through stops and kills; judged by qemu-img.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { generator, randomBytes } from '../helpers/random-bytes.ts'
import { seed } from '../helpers/seed.ts'
import { CHUNK, servedRepository } from '../helpers/served-repository.ts'
import { stillpoint } from '../helpers/stillpoint.ts'
import { attempt, missing, run } from '../helpers/tools.ts'

const skip = missing('qemu-img', 'qemu-nbd')

const stack = new AsyncDisposableStack()
t.teardown(() => stack.disposeAsync())
const { path, config, older, newer, first, second, serve } = await servedRepository(stack)

const pins = () => readdirSync(path('backup/pinned'), { recursive: true, withFileTypes: true }).filter(entry => entry.isFile())

t.test('a disk that is written is an overlay; streamed, it stands alone, and needs the repository no more', { skip }, async t => {
  const overlay = path('root.qcow2')
  const args = [`${second}/root`, '--writable', '--overlay', overlay, '--socket', path('nbd.sock')]
  const model = Buffer.concat([newer.root])
  {
    const server = await serve(...args)
    t.match(server.disks, [{ disk: 'root', size: model.length, overlay, point: second }])
    const client = await NbdClient.connect(server.disks[0]!.uri, { contexts: ['qemu:allocation-depth'] })
    const written = async () =>
      (await Array.fromAsync(client.extents()))
        .filter(({ status }) => status['qemu:allocation-depth'] === 1)
        .map(({ offset, length }) => [offset, length])
    t.same(await written(), [], 'nothing differs from the restore point')
    const bytes = randomBytes(3 * CHUNK, 9)
    await client.write(7 * CHUNK + 100, bytes)
    model.set(bytes, 7 * CHUNK + 100)
    await client.zero(30 * CHUNK, 2 * CHUNK)
    model.fill(0, 30 * CHUNK, 32 * CHUNK)
    t.ok((await client.read(0, model.length)).equals(model))
    const clusters = [
      [7 * CHUNK, 4 * CHUNK],
      [30 * CHUNK, 2 * CHUNK],
    ]
    t.same(await written(), clusters, 'what was written since')
    t.equal(pins().length, 1, 'what the overlay needs is pinned')
    await client[Symbol.asyncDispose]()
    t.same(await server.stop(), [0, null])
  }
  t.equal(pins().length, 1, 'also while nobody serves it')
  t.match(await stillpoint(['serve', 'local', `${first}/root`, '--writable', '--overlay', overlay, '--config', config]), {
    code: 11,
    stderr: /is an overlay of .*: serve that one, or name another file/,
  })
  const other = path('other.qcow2')
  const refused = (file: string) =>
    stillpoint(['serve', 'local', `${second}/root`, '--writable', '--overlay', file, '--config', config])
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', other, '1M'])
  t.match(await refused(other), { code: 11, stderr: /is an image of 1048576 bytes, and disk 'root' has \d+: it is no overlay/ })
  writeFileSync(path('text'), 'a letter')
  t.match(await refused(path('text')), { code: 11, stderr: /text' is there, and is no qcow2 image: name another file/ })
  const guest = spawn('qemu-nbd', ['-t', '-f', 'qcow2', '-k', path('guest.sock'), other], { stdio: 'ignore' })
  while (!existsSync(path('guest.sock'))) await sleep(20)
  const inUse = await refused(other)
  t.match(inUse, {
    code: 11,
    stderr: /other\.qcow2' is in use by qemu-nbd \(process \d+\): end that first, or name another file/,
  })
  t.notMatch(inUse.stderr, /-U/, 'which serve has not')
  guest.kill()
  await once(guest, 'exit')
  t.match(await refused(path('none/x')), { code: 1, stderr: /make the folder '.*none' first/ })
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
  const next = generator(seed)
  const overlays = path('overlays')
  mkdirSync(overlays)
  const model = Buffer.concat([newer.root])
  // What is read of the repository goes by a cache, which is killed as well.
  const args = [second, '--writable', '--overlay', overlays, '--stream', '--cache', path('cache')]
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
  t.ok(readdirSync(path('cache')).length > 0, 'the cache has been used')
})

t.test('both disks are streamed in one run', { skip }, async t => {
  const overlays = path('both')
  mkdirSync(overlays)
  const server = await serve(second, '--writable', '--overlay', overlays, '--stream')
  await server.says('root.qcow2","standsAlone":true')
  await server.says('data.qcow2","standsAlone":true', 'already in use')
  t.same(await server.stop(), [0, null])
  for (const disk of ['root', 'data'])
    t.match(await attempt('qemu-img', ['compare', `${overlays}/${disk}.qcow2`, path(disk)]), { code: 0 }, disk)
})
