// stillpoint serve: a restore point over NBD, judged by qemu-img, qemu-io and our client.

import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, renameSync, statSync, truncateSync, utimesSync, writeFileSync } from 'node:fs'
import { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { openTarget } from '../../src/push/target.ts'
import { newRepository, pushDisks, sourceOf } from '../helpers/push-point.ts'
import { generator } from '../helpers/random-bytes.ts'
import { CHUNK, servedRepository } from '../helpers/served-repository.ts'
import { silent } from '../helpers/s3.ts'
import { stillpoint } from '../helpers/stillpoint.ts'
import { attempt, missing, run } from '../helpers/tools.ts'

const SINCE = 'qemu:dirty-bitmap:since'
const skip = missing('qemu-img', 'qemu-io')

const stack = new AsyncDisposableStack()
t.teardown(() => stack.disposeAsync())
const { path, config, older, newer, first, second, serve } = await servedRepository(stack)

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

/** The numbers of the chunks that differ. */
const chunksOf = (disk: Buffer, other: Buffer) =>
  Array.from({ length: Math.ceil(disk.length / CHUNK) }, (_, chunk) => chunk).filter(chunk => {
    const of = (bytes: Buffer) => bytes.subarray(chunk * CHUNK, (chunk + 1) * CHUNK)
    return !of(disk).equals(of(other))
  })

t.test('what is not as in any other restore point is said by its name, whichever of the two is newer', async t => {
  const server = await serve(`${first}/root`, '--since', first, '--since', second)
  for (const [other, content] of Object.entries({ [first]: older, [second]: newer })) {
    const context = `${SINCE}-${other.split('/')[1]}`
    const client = await NbdClient.connect(server.disks[0]!.uri, { contexts: [context] })
    const changed: number[] = []
    for await (const { offset, length, status } of client.extents({ contexts: [context] }))
      if (status[context] === 1) for (let at = offset; at < offset + length; at += CHUNK) changed.push(Math.floor(at / CHUNK))
    t.same(changed, chunksOf(older.root, content.root), `since ${other}`)
    await client[Symbol.asyncDispose]()
  }
  t.same(await server.stop(), [0, null])
})

t.test(
  'a cache is shared and survives whoever is killed; what is in it is read without the repository, and nothing wrong is',
  async t => {
    const cache = path('cache')
    const packs = () =>
      readdirSync(path('backup'), { recursive: true, withFileTypes: true })
        .filter(entry => entry.isFile() && /packs|meta/.test(entry.parentPath) && /^[\da-f]{64}$/.test(entry.name))
        .map(({ parentPath, name }) => `${parentPath}/${name}`)
    const blocks = () =>
      readdirSync(cache, { recursive: true, withFileTypes: true })
        .filter(entry => entry.isFile())
        .map(({ parentPath, name }) => `${parentPath}/${name}`)
    const readAll = async (uri: string) => {
      const client = await NbdClient.connect(uri)
      const found = await client.read(0, newer.root.length)
      await client[Symbol.asyncDispose]()
      return found
    }
    const both = [await serve(`${second}/root`, '--cache', cache), await serve(`${second}/root`, '--cache', cache)]
    const found = await Promise.all(both.map(({ disks }) => readAll(disks[0]!.uri)))
    t.ok(found.every(bytes => bytes.equals(newer.root)))
    t.same(await both[0]!.stop(), [0, null])
    await both[1]!.kill()
    // Half a file, a flipped one, and what a killed one has left.
    const [cut, flipped] = blocks()
    truncateSync(cut!, 1000)
    const bytes = readFileSync(flipped!)
    bytes[100]! ^= 1
    writeFileSync(flipped!, bytes)
    const left = `${cut}.00000000-0000-4000-8000-000000000000.partial`
    writeFileSync(left, 'left')
    utimesSync(left, 1, 1)
    const again = await serve(`${second}/root`, '--cache', cache)
    t.ok((await readAll(again.disks[0]!.uri)).equals(newer.root), 'what is not a block is fetched')
    t.same(await again.stop(), [0, null])
    t.notOk(existsSync(left))
    for (const pack of packs()) renameSync(pack, `${pack}.away`)
    const alone = await serve(`${second}/root`, '--cache', cache)
    t.ok((await readAll(alone.disks[0]!.uri)).equals(newer.root), 'all of it comes from the cache')
    t.same(await alone.stop(), [0, null])
    for (const pack of packs().length > 0 ? [] : readdirSync(path('backup'), { recursive: true, encoding: 'utf8' }))
      if (pack.endsWith('.away')) renameSync(`${path('backup')}/${pack}`, `${path('backup')}/${pack.slice(0, -5)}`)
    const refused = await stillpoint(['serve', 'local', second, '--cache', cache, '--cache-size', '1M', '--config', config])
    t.match(refused, { code: 2, stderr: /16 MiB at least/ })
  },
)

t.test('an archive is served as a repository is', { skip }, async t => {
  const file = path('archive.zip')
  t.match(await stillpoint(['repo', 'export', 'local', second, file, '--config', config]), { code: 0 })
  const server = await serve.from(file, 'latest')
  for (const { disk, uri } of server.disks)
    t.match(await attempt('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', uri, path(disk)]), { code: 0 }, disk)
  const map = JSON.parse(await run('qemu-img', ['map', '--output=json', server.disks[0]!.uri])) as { zero: boolean }[]
  t.ok(map.some(({ zero }) => zero) && map.some(({ zero }) => !zero), 'holes are said')
  t.match(await attempt('qemu-io', ['-f', 'raw', '-c', 'write 0 512', server.disks[0]!.uri]), { code: 1 })
  t.same(await server.stop(), [0, null])
  t.match(await stillpoint(['serve', file, 'latest', '--since', second]), { code: 2, stderr: /for repositories/ })
  t.match(await stillpoint(['serve', file, 'vm/latest/swap']), { code: 1, stderr: /has no disk 'swap'/ })
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
  await server.says('could not be read: ') // whoever looks at the server hears why
  t.same(await server.stop(), [0, null])
  t.match(await stillpoint(['serve', 'local', `${first}/swap`, '--config', config]), { code: 1, stderr: /has no disk 'swap'/ })
})

t.test('of all disks together 32 MiB of what was read in part are kept in memory', async t => {
  const CHUNKS = 384
  const disks = ['a', 'b'].map(name => {
    const bytes = Buffer.alloc(CHUNKS * CHUNK)
    for (let chunk = 0; chunk < CHUNKS; chunk++) bytes.write(`${name}${chunk}`, chunk * CHUNK)
    return { name, source: sourceOf(bytes) }
  })
  const path = `${t.testdir()}/big`
  await using target = await openTarget({ plugin: 'file', path }, { log: silent })
  const { key } = await pushDisks(await newRepository(target), disks)
  writeFileSync(`${path}.yaml`, JSON.stringify({ repositories: { big: { plugin: 'file', path } } }))
  const server = await serve.from('big', key.slice('points/'.length), '--config', `${path}.yaml`)
  await using clients = new AsyncDisposableStack()
  const connected: NbdClient[] = []
  for (const { uri } of server.disks) connected.push(clients.use(await NbdClient.connect(uri)))
  const readable = async () => {
    let count = 0
    for (const [at, client] of connected.entries())
      for (let chunk = CHUNKS - 1; chunk >= 0; chunk--) {
        const read = await client.read(chunk * CHUNK, 16).catch((error: unknown) => error)
        if (!Buffer.isBuffer(read)) continue
        const said = `${disks[at]!.name}${chunk}`
        if (!read.toString().startsWith(said)) t.fail(`${said} has other bytes`)
        count++
      }
    return count
  }
  t.equal(await readable(), 2 * CHUNKS)
  renameSync(`${path}/packs`, `${path}/away`)
  const kept = await readable()
  t.ok(kept > 100 && kept <= 512, `${kept} chunks are kept`)
  await clients.disposeAsync()
  t.same(await server.stop(), [0, null])
})

t.test(
  'the heap of a program that serves a restore point, or pushes, does not grow for garbage, and that of others does',
  async t => {
    const program = new URL('../../src/base/heap.js', import.meta.url).href
    const code = `const { keepHeapSmall } = await import('${program}')
    if (process.argv.at(-1) !== 'status') keepHeapSmall()
    const pushes = [keepHeapSmall(), keepHeapSmall()]
    for (const push of pushes) for (let twice = 0; twice < 2; twice++) push[Symbol.dispose]()
    const { getHeapSpaceStatistics } = await import('node:v8')
    const lately = []
    for (let n = 0; n < 2e6; n++) lately[n % 1e5] = { n }
    console.log(getHeapSpaceStatistics().find(({ space_name }) => space_name === 'new_space').space_size)`
    const grown = (word: string) =>
      Number(execFileSync(process.execPath, ['--input-type=module', '-e', code, word], { encoding: 'utf8' }))
    t.ok(grown('serve') < 4 << 20)
    t.ok(grown('status') > 4 << 20)
  },
)
