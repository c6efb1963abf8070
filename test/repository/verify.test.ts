// Damage: every object that holds a restore point, cut short, flipped, deleted or swapped, is found by the level that should find it,
// is never restored as good data, and heals with the next backup.

import t from 'tap'
import { Fault } from '../../src/base/errors.ts'
import { Damaged } from '../../src/repository/faults.ts'
import { rebuildIndex } from '../../src/repository/rebuild-index.ts'
import { collect } from '../../src/repository/collector.ts'
import { forget } from '../../src/repository/points.ts'
import { RepositoryReader } from '../../src/repository/reader.ts'
import { Repository } from '../../src/repository/repository.ts'
import { verify, type VerifyLevel } from '../../src/repository/verify.ts'
import { compareDisk } from '../../src/restore/compare-disk.ts'
import { PointDisk } from '../../src/restore/point-disk.ts'
import { MemoryStore, MemoryTarget } from '../helpers/memory-target.ts'
import { bitmapOf, done, newRepository, pushDisks, restored, sealer, sourceOf } from '../helpers/push-point.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'

const CHUNK = 65536

async function fresh(passphrase?: string) {
  const target = new MemoryTarget()
  const repository = await newRepository(target, { passphrase })
  const bytes = diskContent(40 * CHUNK, 1)
  const { key } = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes) }])
  const check = (level: VerifyLevel, options = {}) => done(verify(repository, { level, sealer, ...options }))
  return { target, repository, bytes, key, check }
}

const isWell = ({ damagedPacks, damagedPoints }: { damagedPacks: unknown[]; damagedPoints: unknown[] }) =>
  damagedPacks.length + damagedPoints.length === 0

t.test('a repository that is well passes every level', async t => {
  for (const passphrase of [undefined, 'x']) {
    const { check } = await fresh(passphrase)
    for (const level of ['quick', 'scrub', 'deep'] as const) {
      const result = await check(level)
      t.ok(isWell(result), level)
      t.ok(result.packs >= 2)
      t.equal(result.bytes > 0, level !== 'quick')
    }
  }
})

t.test('of one restore point nothing is read that it does not need, and damage elsewhere is not its own', async t => {
  for (const passphrase of [undefined, 'x']) {
    const { target, repository, key } = await fresh(passphrase)
    const packs = async () => (await Array.fromAsync(target.list('packs/'))).map(({ key }) => key)
    const own = await packs()
    await pushDisks(repository, [{ name: 'root', source: sourceOf(randomBytes(5 * 65536, 99)) }], { machine: 'other' })
    const others = (await packs()).find(pack => !own.includes(pack))
    target.store.set(others!, Buffer.from('damaged'))
    target.store.set('sessions/odd', Buffer.from('{'))
    target.requests.length = 0
    const result = await done(verify(repository, { level: 'deep', sealer, points: [key] }))
    t.match(result, { damagedPacks: { length: 0 }, damagedPoints: { length: 0 }, damagedSessions: { length: 0 } })
    t.notOk(target.requests.some(({ key }) => key === others))
    t.ok(result.bytes > 0)
    const [one] = own
    target.store.set(one!, Buffer.from(target.store.objects.get(one!)!.body).fill(7, 100))
    t.match(await done(verify(repository, { level: 'deep', sealer, points: [key] })), {
      damagedPacks: [{ key: one }],
      damagedPoints: [{ key }],
    })
  }
})

t.test('every kind of damage to every object is found, and nothing damaged is restored as good', async t => {
  const kinds = {
    'is cut short': (body: Buffer) => body.subarray(0, body.length - 1),
    'is flipped at its end': (body: Buffer) => Buffer.concat([body.subarray(0, -1), Buffer.from([body.at(-1)! ^ 1])]),
    'is flipped in the middle': (body: Buffer) => {
      const flipped = Buffer.from(body)
      flipped[body.length >> 1]! ^= 16
      return flipped
    },
    'is empty': () => Buffer.alloc(0),
    'is another': (_body: Buffer, other: Buffer) => other,
    'is gone': () => undefined,
  }
  for (const passphrase of [undefined, 'x']) {
    const sample = await fresh(passphrase)
    const names = [...sample.target.store.objects.keys()].filter(key => /^(packs|meta|index|points)\//.test(key))
    t.ok(names.length >= 5)
    for (const [index, kind] of names
      .map((_, index) => index)
      .flatMap(index => Object.keys(kinds).map(kind => [index, kind as keyof typeof kinds] as const))) {
      const { target, repository, bytes, key, check } = await fresh(passphrase)
      const objects = [...target.store.objects.keys()].filter(key => /^(packs|meta|index|points)\//.test(key))
      const name = objects[index]!
      const { body } = target.store.objects.get(name)!
      const changed = kinds[kind](body, target.store.objects.get(objects[(index + 1) % objects.length]!)!.body)
      if (changed) target.store.set(name, changed)
      else await target.delete([name])
      const what = `${passphrase ? 'encrypted: ' : ''}${name.split('/')[0]} ${kind}`

      if (name.startsWith('points/')) {
        // One that is gone as a whole is as one that was forgotten: nobody could tell.
        if (kind !== 'is gone') t.notOk(isWell(await check('deep')), what)
      } else if (name.startsWith('index/') && kind !== 'is gone') await t.rejects(check('quick'), Damaged, what)
      else if (name.startsWith('index/')) t.notOk(isWell(await check('deep')), what)
      else {
        const level = /cut|empty|gone|another/.test(kind) ? 'quick' : 'scrub'
        const found = await check(level)
        t.ok(
          found.damagedPacks.some(({ key }) => key === name),
          `${what}: found by ${level}`,
        )
        if (/gone|empty/.test(kind))
          t.ok(
            found.damagedPoints.some(point => point.key === key),
            'with the restore points that need it',
          )
      }
      const outcome = await restored(repository, key, 'root').then(
        found => found.equals(bytes),
        (error: unknown) => error instanceof Fault,
      )
      t.ok(outcome, `${what}: restored as it was, or not at all`)
    }
  }
})

t.test('after quarantine the next backup brings back what was damaged, for the older restore points too', async t => {
  const { target, repository, bytes, key, check } = await fresh()
  for (const prefix of ['packs/', 'meta/']) {
    const [pack] = await Array.fromAsync(target.list(prefix))
    const flipped = Buffer.from((await target.get(pack!.key)).body)
    flipped[pack!.size >> 1]! ^= 1
    target.store.set(pack!.key, flipped)
  }
  t.equal((await check('scrub', { quarantine: true })).damagedPacks.length, 2)
  await t.rejects(restored(repository, key, 'root'), Damaged)
  const again = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes) }])
  t.ok(again.manifest.disks[0]!.new > 0)
  t.ok((await restored(repository, again.key, 'root')).equals(bytes))
  t.ok((await restored(repository, key, 'root')).equals(bytes), 'the older one as well')
  t.same((await check('deep')).damagedPoints, [])
})

t.test('a deep check with a budget finds packs to put into quarantine, too, and they heal', async t => {
  for (const prefix of ['packs/', 'meta/']) {
    const { target, repository, bytes, key, check } = await fresh('x')
    const [pack] = await Array.fromAsync(target.list(prefix))
    const flipped = Buffer.from((await target.get(pack!.key)).body)
    flipped[200]! ^= 1
    target.store.set(pack!.key, flipped)
    const found = await check('deep', { budget: 1 << 30, quarantine: true })
    t.match(found.damagedPacks, [{ key: pack!.key }])
    t.match(found.damagedPoints, [{ key, disk: 'root' }])
    await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes) }])
    t.ok((await restored(repository, key, 'root')).equals(bytes))
    t.same((await check('deep', { budget: 1 << 30 })).damagedPoints, [])
  }
})

t.test('an increment by bitmap brings back chunks that are damaged though nobody has written them', async t => {
  const { target, repository, check } = await fresh()
  const bytes = diskContent(40 * CHUNK, 2)
  const first = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes), checkpoint: 'c1' }], { machine: 'other' })
  const packs = await Array.fromAsync(target.list('packs/'))
  for (const { key } of packs) target.store.set(key, Buffer.alloc(10))
  await check('quick', { quarantine: true })
  const changes = { bitmap: { *dirtyRanges() {} }, since: 'c1' }
  const second = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes), changes }], { machine: 'other' })
  t.equal(second.manifest.disks[0]!.read.mode, 'bitmap')
  t.ok((await restored(repository, second.key, 'root')).equals(bytes))
  t.ok((await restored(repository, first.key, 'root')).equals(bytes))
})

t.test('a push relies on nothing that is gone, though nobody has looked before and no chunk has changed', async t => {
  // Two leaves, of which the second restore point has one of its own.
  const bytes = Buffer.alloc(300 * CHUNK)
  bytes.set(randomBytes(12 * CHUNK, 3))
  bytes.set(randomBytes(8 * CHUNK, 4), 290 * CHUNK)
  const early = Buffer.from(bytes).fill(7, 290 * CHUNK)
  const passphrase = 'x'
  const store = new MemoryStore()
  const before = await newRepository(new MemoryTarget(store), { passphrase })
  const push = (repository: Repository, bytes: Buffer, more?: object) =>
    pushDisks(repository, [{ name: 'root', source: sourceOf(bytes), ...more }], { packSize: 8 * CHUNK })
  const changes = { bitmap: bitmapOf([{ offset: 290 * CHUNK, length: 10 * CHUNK }]), since: 'c1' }
  const first = await push(before, early, { checkpoint: 'c1' })
  await push(before, bytes, { checkpoint: 'c2', changes })
  const names = [...store.objects.keys()].filter(key => /^(packs|meta|index)\//.test(key))
  t.ok(names.length >= 7, `${names.length} objects`)
  for (const [name, kind] of names.flatMap(name => [[name, 'is gone'] as const, [name, 'is cut short'] as const])) {
    if (name.startsWith('index/') && kind !== 'is gone') continue // then nobody can write before it is made anew
    const target = new MemoryTarget()
    for (const [key, { body }] of store.objects) target.store.set(key, body)
    const repository = await Repository.open(target, { passphrase })
    if (kind === 'is gone') await target.delete([name])
    else target.store.set(name, store.objects.get(name)!.body.subarray(0, -1))
    const what = `${name.split('/')[0]} ${kind}`
    const third = await push(repository, bytes, { changes: { bitmap: bitmapOf([]), since: 'c2' } })
    t.ok((await restored(repository, third.key, 'root')).equals(bytes), `${what}: the new one is whole`)
    const { damagedPoints } = await done(verify(repository, { level: 'deep', sealer }))
    t.notOk(damagedPoints.find(({ key }) => key === third.key), what) // prettier-ignore
    if (!damagedPoints.some(({ key }) => key === first.key))
      t.ok((await restored(repository, first.key, 'root')).equals(early), `${what}: what is called well is`)
    // What is lost goes with the restore points that need it, and nothing else does.
    for (const { key } of damagedPoints) await forget(repository, key)
    await collect(repository, { graceMs: 0 })
    const after = await done(verify(repository, { level: 'deep', sealer }))
    t.same(after.damagedPoints, [], `${what}: all is well after a collection`)
  }
})

t.test('an index that is lost or damaged is made anew from the packs', async t => {
  const { target, repository, bytes, key, check } = await fresh()
  await pushDisks(repository, [{ name: 'root', source: sourceOf(diskContent(40 * CHUNK, 2)) }], { machine: 'other' })
  const indexes = async () => (await Array.fromAsync(target.list('index/'))).map(({ key }) => key)
  t.same(await rebuildIndex(repository), { removed: [], packs: 0 }, 'nothing to do')
  const [first, second] = await indexes()
  target.store.set(first!, Buffer.from('damaged'))
  await target.delete([second!])
  await t.rejects(check('quick'), Damaged)
  const { removed, packs } = await rebuildIndex(repository)
  t.same(removed, [first])
  t.ok(packs >= 4)
  t.ok(isWell(await check('deep')))
  t.ok((await restored(repository, key, 'root')).equals(bytes))
  await collect(repository, { graceMs: 0 })
  t.ok(isWell(await check('deep')), 'and nothing that is needed is collected')

  // What the collector has written anew is named in its state.
  await forget(repository, key)
  await collect(repository, { graceMs: 0 })
  for (const name of await indexes()) await target.delete([name])
  await t.rejects(check('quick'), Damaged)
  await rebuildIndex(repository)
  t.ok(isWell(await check('deep')))
})

t.test('runs with a budget go on where the last one ended, until everything was read', async t => {
  const { target, repository, check } = await fresh()
  for (const machine of ['a', 'b', 'c', 'd'])
    await pushDisks(repository, [{ name: 'root', source: sourceOf(diskContent(40 * CHUNK, machine.charCodeAt(0))) }], { machine })
  for (const [level, prefix] of [
    ['scrub', /^(packs|meta)\//],
    ['deep', /^points\//],
  ] as const) {
    const all = await check(level)
    t.equal(all.complete, true)
    const read: string[] = []
    const wanted = [...target.store.objects.keys()].filter(key => prefix.test(key)).sort()
    let bytes = 0
    for (let run = 0; run < 20 && new Set(read).size < wanted.length; run++) {
      target.requests.length = 0
      const one = await check(level, { budget: 1 << 20 })
      t.ok(one.bytes > 0 && one.bytes < 6 << 20, `${one.bytes} bytes`)
      bytes += one.bytes
      const seen = target.requests.filter(({ op, key }) => op === 'get' && prefix.test(key)).map(({ key }) => key)
      read.push(...new Set(level === 'scrub' ? seen : seen.filter(key => key.startsWith('points/'))))
    }
    t.same([...new Set(read)].sort(), wanted, level)
    if (level === 'scrub')
      t.equal(new Set(read.slice(0, wanted.length)).size, wanted.length, 'none twice before all were read once')
    t.ok(bytes > all.bytes >> 2)
  }
  target.store.set('checks/scrub', Buffer.from('nonsense'))
  t.ok(isWell(await check('scrub', { budget: 100 })), 'it begins again')
  const [pack] = await Array.fromAsync(target.list('packs/'))
  const flipped = Buffer.from((await target.get(pack!.key)).body)
  flipped[100]! ^= 1
  target.store.set(pack!.key, flipped)
  let found = false
  for (let run = 0; run < 20 && !found; run++)
    found = (await check('scrub', { budget: 100 })).damagedPacks.some(({ key }) => key === pack!.key)
  t.ok(found)
})

t.test('what restore points share is read once', async t => {
  const { repository, bytes, check } = await fresh()
  const once = (await check('deep')).bytes
  for (let more = 0; more < 3; more++) await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes) }])
  const meta = (await check('scrub')).bytes
  const all = await check('deep')
  t.ok(isWell(all))
  t.ok(all.bytes - once < 10_000 && all.bytes > meta, `${once} and ${all.bytes} bytes`)
})

t.test('what a repository says of itself, when it is damaged, is never a way to wrong bytes', async t => {
  for (const passphrase of [undefined, 'x']) {
    const { target } = await fresh(passphrase)
    const keys = [...target.store.objects.keys()].filter(key => /^(repository.json|keys\/|gc\/state)/.test(key))
    t.equal(keys.length, passphrase ? 3 : 2)
    const other = await fresh(passphrase)
    for (const name of keys.map(key => key.split('/')[0]!))
      for (const kind of ['cut', 'flipped', 'gone', 'another', 'empty'] as const) {
        const { target, bytes, key } = await fresh(passphrase)
        const where = [...target.store.objects.keys()].find(key => key.startsWith(name))!
        const { body } = target.store.objects.get(where)!
        const flipped = Buffer.from(body)
        flipped[body.length >> 1]! ^= 4
        const theirs = [...other.target.store.objects].find(([key]) => key.startsWith(name))![1].body
        const changed = { cut: body.subarray(0, -1), flipped, gone: undefined, another: theirs, empty: Buffer.alloc(0) }[kind]
        if (changed) target.store.set(where, changed)
        else target.store.objects.delete(where)
        const outcome = await Repository.open(target, passphrase === undefined ? {} : { passphrase })
          .then(repository => restored(repository, key, 'root'))
          .then(
            found => found.equals(bytes),
            (error: unknown) => error instanceof Fault || String(error),
          )
        t.equal(outcome, true, `${passphrase ? 'encrypted: ' : ''}${name} ${kind}`)
      }
  }
})

t.test('served, a damaged chunk is an error, and the others are read', async t => {
  for (const passphrase of [undefined, 'x']) {
    const { target, repository, bytes, key } = await fresh(passphrase)
    const [pack] = await Array.fromAsync(target.list('packs/'))
    const flipped = Buffer.from((await target.get(pack!.key)).body)
    flipped[pack!.size >> 1]! ^= 1
    target.store.set(pack!.key, flipped)
    await using reader = await RepositoryReader.begin(repository, [key], { beatMs: 0 })
    await using disk = new PointDisk({ reader, disk: reader.points[0]!.manifest.disks[0]!, sealer })
    let failed = 0
    for (let chunk = 0; chunk < 40; chunk++) {
      const into = Buffer.alloc(CHUNK)
      try {
        await disk.read(chunk * CHUNK, into)
        t.ok(into.equals(bytes.subarray(chunk * CHUNK, (chunk + 1) * CHUNK)))
      } catch (error) {
        t.type(error, Damaged)
        failed++
      }
    }
    t.equal(failed, 1)
  }
})

t.test('compared with an image, a restore point says where it differs, and reads nothing but its tree', async t => {
  const { target, repository, bytes, key } = await fresh('x')
  await using reader = await RepositoryReader.begin(repository, [key], { beatMs: 0 })
  const [disk] = reader.points[0]!.manifest.disks
  const compared = async (other: Buffer) => {
    const { differs, done: looked, total } = await done(compareDisk({ reader, disk: disk!, other: sourceOf(other), sealer }))
    t.equal(looked, total)
    return differs
  }
  target.requests.length = 0
  t.same(await compared(bytes), [])
  t.same(
    target.requests.filter(({ op, key }) => op === 'get' && key.startsWith('packs/')),
    [],
  )
  const other = Buffer.from(bytes)
  other[7 * CHUNK + 5]! ^= 1
  other[8 * CHUNK]! ^= 1
  other.fill(1, 39 * CHUNK + 10)
  t.same(await compared(other), [
    { offset: 7 * CHUNK, length: 2 * CHUNK },
    { offset: 39 * CHUNK, length: CHUNK },
  ])
  t.same(await compared(Buffer.concat([bytes, Buffer.alloc(3 * CHUNK + 7)])), [], 'zeroes behind the end')
  t.same(await compared(Buffer.concat([bytes, Buffer.alloc(CHUNK), Buffer.from([1])])), [{ offset: 41 * CHUNK, length: 1 }])
  const zeroesFrom = bytes.findLastIndex(byte => byte !== 0) + 1
  t.same(await compared(bytes.subarray(0, zeroesFrom)), [], 'zeroes before the end')
  t.same(
    await compared(bytes.subarray(0, 5)),
    await compared(Buffer.concat([bytes.subarray(0, 5), Buffer.alloc(40 * CHUNK - 5)])),
  )
})

t.test('a disk that ends within a chunk is compared to its last byte, and beyond', async t => {
  const repository = await newRepository(new MemoryTarget())
  const bytes = Buffer.concat([diskContent(2 * CHUNK, 5), Buffer.from('end')])
  const { key } = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes) }])
  await using reader = await RepositoryReader.begin(repository, [key], { beatMs: 0 })
  const [disk] = reader.points[0]!.manifest.disks
  const compared = async (other: Buffer) =>
    (await done(compareDisk({ reader, disk: disk!, other: sourceOf(other), sealer }))).differs
  t.same(await compared(bytes), [])
  t.same(await compared(Buffer.concat([bytes, Buffer.alloc(509)])), [])
  t.same(await compared(Buffer.concat([bytes, Buffer.alloc(508), Buffer.from('x')])), [{ offset: 2 * CHUNK, length: 512 }])
  t.same(await compared(bytes.subarray(0, -1)), [{ offset: 2 * CHUNK, length: 3 }])
})
