// Damage to any object of a repository that is at work: with somebody who reads, a commit that is half done, a restore point that was
// forgotten, a collection under way, a pin and a mark. Nothing damaged is ever served as good data, what does not need the object is
// there as before, also after the next collection, and where data are concerned a check finds it.

import t, { type Test } from 'tap'
import { Fault } from '../../src/base/errors.ts'
import { collect } from '../../src/repository/collector.ts'
import { recordCheck } from '../../src/repository/last-checks.ts'
import { takeOver } from '../../src/repository/owner.ts'
import { forget, pin } from '../../src/repository/points.ts'
import { RepositoryReader } from '../../src/repository/reader.ts'
import { quarantine } from '../../src/repository/repository-index.ts'
import { Repository } from '../../src/repository/repository.ts'
import { Unavailable } from '../../src/repository/target.ts'
import { verify, type Verified } from '../../src/repository/verify.ts'
import { PointDisk } from '../../src/restore/point-disk.ts'
import { MemoryStore, MemoryTarget } from '../helpers/memory-target.ts'
import { done, newRepository, pushDisks, sealer, sourceOf } from '../helpers/push-point.ts'
import { diskContent } from '../helpers/random-bytes.ts'

const CHUNK = 65536
const SIZE = 5 * CHUNK + 512

type AtWork = Awaited<ReturnType<typeof atWork>>

/** The store, and what the root disk of each restore point holds. */
async function atWork(passphrase: string | undefined) {
  const target = new MemoryTarget()
  const repository = await newRepository(target, { passphrase })
  const points = new Map<string, Buffer>()
  const push = async (machine: string, seed: number) => {
    const bytes = diskContent(SIZE, seed)
    const { key } = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes) }], { machine, packSize: 1 << 18 })
    points.set(key, bytes)
    return key
  }
  const old = await push('vm', 1)
  await push('vm', 2)
  const other = await push('other', 3)
  await pin(repository, other, 'to be kept')
  await recordCheck(target, 'scrub', await done(verify(repository, { level: 'scrub', budget: 1 << 30 })))
  const [pack] = await Array.fromAsync(target.list('packs/'))
  await quarantine(target, pack!.key)
  await forget(repository, old)
  points.delete(old)
  await collect(repository, { pollMs: 1 }) // is final, and waits for its grace period
  await RepositoryReader.begin(repository, [other], { beatMs: 0 })
  target.before = async ({ op, key }) => {
    if (op === 'put' && key.startsWith('points/')) throw new Unavailable('the store is away')
  }
  await push('half', 4)
  return { store: target.store, points, passphrase }
}

const kinds: Record<string, (body: Buffer, other: Buffer) => Buffer | undefined> = {
  'is cut short': body => body.subarray(0, -1),
  'is flipped': body => {
    const flipped = Buffer.from(body)
    flipped[body.length >> 1]! ^= 4
    return flipped
  },
  'is another': (_, other) => other,
  'is gone': () => undefined,
}

/** As a client of `serve` reads it: bytes, or a Fault. */
async function served(repository: Repository, key: string): Promise<Buffer | Fault> {
  try {
    await using reader = await RepositoryReader.begin(repository, [key], { beatMs: 0 })
    await using disk = new PointDisk({ reader, disk: reader.points[0]!.manifest.disks[0]!, sealer })
    const bytes = Buffer.alloc(disk.size)
    await disk.read(0, bytes)
    return bytes
  } catch (error) {
    if (error instanceof Fault) return error
    throw error
  }
}

/** verify.test.ts does the others to packs, index and restore points, with a key and without. */
const forData = ['is flipped', 'is another']
const forOthers = ['is cut short', 'is flipped', 'is another', 'is gone']

async function damageOne(t: Test, { store, points, passphrase }: AtWork, name: string, kind: string) {
  const names = [...store.objects.keys()]
  const number = names.indexOf(name)
  const damage = kinds[kind]!
  const target = new MemoryTarget(new MemoryStore())
  for (const [key, { body }] of store.objects) target.store.set(key, body)
  const { body } = store.objects.get(name)!
  const changed = damage(body, store.objects.get(names[(number + 3) % names.length]!)!.body)
  if (changed) target.store.set(name, changed)
  else await target.delete([name])
  const what = `${name} ${kind}`
  let repository: Repository
  try {
    repository = await Repository.open(target, passphrase === undefined ? {} : { passphrase })
  } catch (error) {
    t.ok(error instanceof Fault && /^(repository|keys)/.test(name), `${what}: ${String(error)}`)
    return
  }
  const isData = /^(packs|meta|index|points|keys|gc\/state|repository)/.test(name)
  const isCommit = name.startsWith('sessions/') && body.includes('"committed"')
  const found = new Map<string, Buffer | Fault>()
  for (const [key, bytes] of points) {
    const got = await served(repository, key)
    found.set(key, got)
    if (got instanceof Fault) {
      if (!isData && !(isCommit && key.startsWith('points/half/'))) t.fail(`${what}: ${key}: ${got.message}`)
    } else if (!got.equals(bytes)) t.fail(`${what}: ${key} is served, and is not what it was`)
  }
  // Where the list is whole, checks look at everything that restore points need, and at who works.
  const told = await done(verify(repository, { level: 'deep', sealer })).catch((error: unknown) => error)
  const isFound = told instanceof Fault || Object.values(told as Verified).some(found => Array.isArray(found) && found.length > 0) // packs, points, sessions
  const isLost = [...found].some(
    ([key, got]) => got instanceof Fault && !(kind === 'is gone' && name === key) && !(isCommit && kind === 'is gone'),
  )
  if (isLost || (name.startsWith('sessions/') && kind === 'is cut short')) t.ok(isFound, `${what}: is found`)
  // Twice: one collection goes on with what was begun.
  for (let run = 0; run < 2; run++)
    try {
      await collect(repository, { graceMs: 0, staleMs: 0, pollMs: 1 })
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      if (!isData && !isCommit) t.fail(`${what}: ${error.message}`)
    }
  for (const [key, before] of found)
    if (Buffer.isBuffer(before)) {
      const after = await served(repository, key)
      if (!Buffer.isBuffer(after) || !after.equals(before))
        t.fail(`${what}: ${key} is lost by a collection: ${String(after).slice(0, 300)}`)
    }
}

const working = await atWork(process.env['DAMAGE_PLAIN'] ? undefined : 'x')
for (const folder of ['packs', 'meta', 'index', 'points', 'sessions', 'gc', 'quarantine', 'pinned', 'checks', 'repository.json'])
  t.test(`whatever of ${folder} is damaged, nothing wrong is served, and the rest is`, async t => {
    const names = [...working.store.objects.keys()].filter(name => name.split('/')[0] === folder)
    t.ok(names.length > 0, `${names.length} objects`)
    for (const name of names)
      for (const kind of /^(packs|meta|index|points)$/.test(folder) ? forData : forOthers) await damageOne(t, working, name, kind)
  })

t.test(
  'a damaged session keeps nobody from reading, and is removed by a collection once nobody can be at work in it',
  async t => {
    const { store, points } = await atWork(undefined)
    const target = new MemoryTarget(store)
    const name = [...store.objects.keys()].find(key => key.startsWith('sessions/'))
    store.set(name!, Buffer.from('{'))
    const repository = await Repository.open(target)
    t.match(await done(verify(repository, { level: 'quick' })), { damagedSessions: [{ key: name }] })
    await t.rejects(collect(repository), { name: 'Damaged', message: /collect again in 15 minutes, which removes it/ })
    t.ok(store.objects.has(name!))
    await collect(repository, { staleMs: 0, pollMs: 1 })
    t.notOk(store.objects.has(name!))
    for (const [key, bytes] of [...points].filter(([key]) => !key.startsWith('points/half/')))
      t.ok(bytes.equals((await served(repository, key)) as Buffer))
  },
)

t.test('a damaged restore point hides no other, and forgetting it makes room for the collector', async t => {
  const { store, points } = await atWork('x')
  const target = new MemoryTarget(store)
  const repository = await Repository.open(target, { passphrase: 'x' })
  const [bad, ...rest] = [...points.keys()].filter(key => store.objects.has(key))
  // It looks like a tombstone to who does not look closely.
  store.set(bad!, Buffer.from('{"forgotten":"2026-01-01T00:00:00.000Z"} '))
  const damaged: string[] = []
  const there = await Array.fromAsync(repository.points(undefined, undefined, key => damaged.push(key)))
  t.same(damaged, [bad])
  t.ok(rest.every(key => there.some(point => point.key === key)))
  await collect(repository, { graceMs: 0 }) // ends what was begun before
  await t.rejects(collect(repository, { graceMs: 0 }), {
    name: 'Damaged',
    message: /"stillpoint point forget" takes it out of the way/,
  })
  await forget(repository, bad!)
  await collect(repository, { graceMs: 0, staleMs: 0, pollMs: 1 })
  for (const key of rest) t.ok(points.get(key)!.equals((await served(repository, key)) as Buffer), key)
})

t.test('the manifest of one restore point in place of another is damage, and is not served for that', async t => {
  for (const passphrase of [undefined, 'x']) {
    const { store, points } = await atWork(passphrase)
    const repository = await Repository.open(new MemoryTarget(store), passphrase === undefined ? {} : { passphrase })
    const [one, other] = [...points.keys()].filter(key => store.objects.has(key))
    store.set(one!, store.objects.get(other!)!.body)
    t.match(await served(repository, one!), { name: 'Damaged', message: new RegExp(`what is there is the manifest of ${other}`) })
    t.ok(points.get(other!)!.equals((await served(repository, other!)) as Buffer))
    const { damagedPoints } = await done(verify(repository, { level: 'deep', sealer }))
    t.match(damagedPoints, [{ key: one }])
    await collect(repository, { graceMs: 0 }) // ends what was begun before
    await t.rejects(collect(repository, { graceMs: 0 }), { name: 'Damaged' }, 'nor is what it needs taken')
  }
})

t.test('where one host writes, and its name is damaged, taking over writes it anew', async t => {
  const target = new MemoryTarget()
  const put = target.put.bind(target)
  target.put = (key, body) => put(key, body)
  const repository = await newRepository(target)
  await pushDisks(repository, [{ name: 'root', source: sourceOf(diskContent(SIZE, 1)) }])
  target.store.set('owner', Buffer.from('{'))
  const again = pushDisks(repository, [{ name: 'root', source: sourceOf(diskContent(SIZE, 2)) }])
  await t.rejects(again, { name: 'Damaged', message: /"stillpoint repo take-over" makes this host the one/ })
  await takeOver(repository, { settleMs: 1 })
  await pushDisks(repository, [{ name: 'root', source: sourceOf(diskContent(SIZE, 2)) }])
})
