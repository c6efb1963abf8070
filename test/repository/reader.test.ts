// Readers that were silent for so long that others took them for dead: they go on if nothing of theirs can be gone, or say why not.

import t from 'tap'
import { collect } from '../../src/repository/collector.ts'
import { SessionExpired } from '../../src/repository/faults.ts'
import { forget } from '../../src/repository/points.ts'
import { RepositoryReader } from '../../src/repository/reader.ts'
import { repack } from '../../src/repository/repack.ts'
import { PointDisk } from '../../src/restore/point-disk.ts'
import { MemoryTarget } from '../helpers/memory-target.ts'
import { newRepository, pushDisks, sealer, sourceOf } from '../helpers/push-point.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const CHUNK = 65536
const DAY = 86_400_000

/** Somebody reads the second of two restore points, sleeps for a day, and was fenced meanwhile. */
async function asleep({ forgetRecord = false } = {}) {
  const target = new MemoryTarget()
  let time = Date.now()
  target.store.now = () => new Date(time)
  const repository = await newRepository(target, { passphrase: 'x' })
  const old = randomBytes(30 * CHUNK, 1)
  const bytes = Buffer.from(old)
  for (let chunk = 0; chunk < 30; chunk++) if (chunk % 3 > 0) bytes.set(randomBytes(CHUNK, 100 + chunk), chunk * CHUNK)
  const first = await pushDisks(repository, [{ name: 'root', source: sourceOf(old) }])
  const { key } = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes) }])
  const reader = await RepositoryReader.begin(repository, [key], { beatMs: 0 })
  const disk = new PointDisk({ reader, disk: reader.points[0]!.manifest.disks[0]!, sealer, cacheBytes: 0 })
  const { id } = reader.session
  const read = async (chunk: number) => {
    const into = Buffer.alloc(CHUNK)
    await disk.read(chunk * CHUNK, into)
    return into
  }
  const bytesOf = (chunk: number) => bytes.subarray(chunk * CHUNK, (chunk + 1) * CHUNK)
  t.ok((await read(1)).equals(bytesOf(1)))
  const gc = () => collect(repository, { graceMs: 0 })
  time += DAY
  await forget(repository, first.key)
  await gc()
  t.match(String(target.store.objects.get(`sessions/${id}`)?.body), '"expired"', 'it was fenced')
  if (forgetRecord) await target.delete([`sessions/${id}`]) // as a later collection does
  const end = async () => {
    await disk[Symbol.asyncDispose]()
    await reader[Symbol.asyncDispose]()
  }
  return { target, repository, key, reader, id, read, bytesOf, gc, end }
}

t.test('a reader that slept too long goes on where its restore point is there, also with packs that were rewritten', async t => {
  const { target, repository, key, reader, id, read, bytesOf, gc, end } = await asleep({ forgetRecord: true })
  t.ok((await repack(repository, { budget: 1 << 30, packSize: 1 << 20, beatMs: 0 })).packs > 0)
  t.match(await gc(), { state: 'deleted' })
  for (let chunk = 0; chunk < 30; chunk++) t.ok((await read(chunk)).equals(bytesOf(chunk)), `chunk ${chunk}`)
  t.notOk(reader.signal.aborted)
  t.not(reader.session.id, id, 'it has a new record')
  t.ok(target.store.objects.has(`sessions/${reader.session.id}`))
  await t.rejects(forget(repository, key), /in use/, 'which pins what it reads')
  await end()
  t.same(await Array.fromAsync(target.list('sessions/')), [], 'and goes with it')
})

t.test('one whose restore point was forgotten meanwhile ends, and says so, at what is gone or at its next beat', async t => {
  for (const how of ['read', 'beat'] as const) {
    const { repository, key, reader, read, gc, end } = await asleep()
    await forget(repository, key)
    t.match(await gc(), { state: 'deleted' })
    if (how === 'beat') await t.rejects(reader.session.beat(), SessionExpired)
    else await t.rejects(read(20), SessionExpired)
    t.type(reader.signal.reason, SessionExpired, how)
    await t.rejects(read(10), { name: 'SessionExpired', message: /forgotten meanwhile.*start it again/ })
    await t.rejects(reader.session.beat(), SessionExpired, 'for good')
    await end()
  }
})

t.test('a store that does not answer while a reader comes back is no reason to end it', async t => {
  const { target, reader, read, bytesOf, end } = await asleep()
  let down = true
  target.before = ({ op, key }) => {
    if (down && op === 'get' && key.startsWith('points/')) throw new Error('no network')
  }
  await t.rejects(reader.session.beat(), /no network/)
  t.notOk(reader.signal.aborted)
  down = false
  await reader.session.beat()
  t.ok((await read(20)).equals(bytesOf(20)))
  await end()
  t.notOk(target.store.objects.has(`sessions/${reader.session.id}`))
})
