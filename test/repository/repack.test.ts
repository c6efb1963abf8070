// Repacking: packs that are mostly waste give way to new ones, without a restore point or somebody who reads noticing.

import t from 'tap'
import { collect } from '../../src/repository/collector.ts'
import { SessionExpired } from '../../src/repository/faults.ts'
import { forget } from '../../src/repository/points.ts'
import { RepositoryReader } from '../../src/repository/reader.ts'
import { repack } from '../../src/repository/repack.ts'
import { verify } from '../../src/repository/verify.ts'
import { PointDisk } from '../../src/restore/point-disk.ts'
import { MemoryTarget } from '../helpers/memory-target.ts'
import { done, newRepository, pushDisks, restored, sealer, sourceOf } from '../helpers/push-point.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const CHUNK = 65536

/** Three packs of which the newest restore point needs a third each, and one that it needs all of. */
async function wasteful(passphrase?: string) {
  const target = new MemoryTarget()
  const repository = await newRepository(target, { passphrase })
  const push = (disks: Buffer) => pushDisks(repository, [{ name: 'root', source: sourceOf(disks) }])
  const bytes = randomBytes(45 * CHUNK, 1)
  const first = await push(bytes)
  const packs = async () => (await Array.fromAsync(target.list('packs/'))).map(({ key }) => key)
  const old = await packs()
  for (let chunk = 0; chunk < 45; chunk++) if (chunk % 3 > 0) bytes.set(randomBytes(CHUNK, 100 + chunk), chunk * CHUNK)
  const second = await push(bytes)
  const stored = async () => (await Array.fromAsync(target.list('packs/'))).reduce((sum, { size }) => sum + size, 0)
  const work = (options: object = {}) => repack(repository, { budget: 1 << 30, packSize: 1 << 20, beatMs: 0, ...options })
  const gc = () => collect(repository, { graceMs: 0 })
  return { target, repository, bytes, first, second, old, stored, repack: work, gc }
}

for (const passphrase of [undefined, 'x'])
  t.test(`what is needed of wasteful packs is written anew, and the rest goes${passphrase ? ': encrypted' : ''}`, async t => {
    const { repository, bytes, first, second, stored, repack, gc } = await wasteful(passphrase)
    t.match(await repack(), { packs: 0, written: 0 }, 'nothing is waste while both are there')
    await forget(repository, first.key)
    t.match(await gc(), { state: 'deleted', packs: 1 }, 'a node; every other pack is needed a little')
    const before = await stored()
    const told = await repack()
    t.equal(told.packs, 3)
    t.ok(told.written < 17 * CHUNK && told.written > 12 * CHUNK, `${told.written} bytes`)
    t.ok((await restored(repository, second.key, 'root')).equals(bytes), 'both are there')
    t.match(await gc(), { state: 'deleted', packs: 3, bytes: told.bytes })
    const after = await stored()
    t.equal(before - after, told.bytes - told.written)
    t.ok((await restored(repository, second.key, 'root')).equals(bytes))
    const { damagedPacks, damagedPoints } = await done(verify(repository, { level: 'deep', sealer }))
    t.same([damagedPacks, damagedPoints], [[], []])
    t.match(await repack(), { packs: 0 }, 'there is no more to do')
    t.match(await gc(), { state: 'nothing' })
    t.equal((await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes) }])).manifest.disks[0]!.new, 0)
  })

t.test('a budget does the worst ones first, and the next run goes on', async t => {
  const { repository, first, second, bytes, repack, gc } = await wasteful()
  await forget(repository, first.key)
  await gc()
  const told = []
  for (let run = 0; run < 3; run++) told.push(await repack({ budget: 1 }))
  t.same(
    told.map(({ packs }) => packs),
    [1, 1, 1],
  )
  t.match(await gc(), { state: 'deleted', packs: 3 })
  t.ok((await restored(repository, second.key, 'root')).equals(bytes))
})

t.test('who reads all along finds what was moved meanwhile', async t => {
  for (const passphrase of [undefined, 'x']) {
    const { target, repository, first, second, bytes, repack, gc } = await wasteful(passphrase)
    await forget(repository, first.key)
    await gc()
    await using reader = await RepositoryReader.begin(repository, [second.key], { beatMs: 0 })
    await using disk = new PointDisk({ reader, disk: reader.points[0]!.manifest.disks[0]!, sealer })
    const into = Buffer.alloc(bytes.length)
    await disk.read(0, into.subarray(0, CHUNK))
    await repack()
    t.match(await gc(), { state: 'deleted', packs: 3 })
    const indexes = () => target.requests.filter(({ op, key }) => op === 'get' && key.startsWith('index/')).length
    const before = indexes()
    await disk.read(0, into)
    t.ok(into.equals(bytes))
    t.ok(indexes() - before <= 6, 'it looks the index up again a few times at most')
  }
})

t.test('stopped anywhere, repacking leaves every restore point as it was, and a later run does the rest', async t => {
  for (let stop = 0, ended = false; !ended; stop++) {
    const { target, repository, first, second, bytes, repack, gc } = await wasteful()
    await forget(repository, first.key)
    let left = stop
    target.before = ({ op }) => {
      if (op === 'put' && left-- === 0) throw new Error('the power is gone')
    }
    ended = await repack().then(
      () => true,
      () => false,
    )
    target.before = () => {}
    t.ok((await restored(repository, second.key, 'root')).equals(bytes), `stopped at ${stop}`)
    await collect(repository, { graceMs: 0, staleMs: 0 })
    t.ok((await restored(repository, second.key, 'root')).equals(bytes))
    await repack()
    await gc()
    t.ok((await restored(repository, second.key, 'root')).equals(bytes))
    t.same((await done(verify(repository, { level: 'deep', sealer }))).damagedPoints, [])
  }
})

t.test('a pack that is damaged stays as it is', async t => {
  const { target, repository, first, old, repack } = await wasteful()
  await forget(repository, first.key)
  const { body } = await target.get(old[0]!)
  const broken = Buffer.from(body)
  for (let at = 100; at < broken.length; at += 4096) broken[at]! ^= 1
  target.store.set(old[0]!, broken)
  t.match(await repack(), { packs: 2 })
  t.same(
    (await Array.fromAsync(target.list('quarantine/'))).map(({ key }) => key.replace('quarantine/', '')),
    old.slice(1),
  )
})

t.test('one whose session is taken for dead moves nothing', async t => {
  const { target, repository, first, second, bytes, repack } = await wasteful()
  await forget(repository, first.key)
  target.before = ({ op, key }) => {
    if (op !== 'put' || !key.startsWith('index/')) return
    target.before = () => {}
    for (const [name, { body }] of target.store.objects)
      if (name.startsWith('sessions/')) target.store.set(name, Buffer.from(String(body).replace('"active"', '"expired"')))
  }
  await t.rejects(repack(), SessionExpired)
  t.same(await Array.fromAsync(target.list('quarantine/')), [])
  t.ok((await restored(repository, second.key, 'root')).equals(bytes))
})
