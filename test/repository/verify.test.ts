// Damage: every object that holds a restore point, cut short, flipped, deleted or swapped, is found by the level that should find it,
// is never restored as good data, and heals with the next backup.

import t from 'tap'
import { Fault } from '../../src/base/errors.ts'
import { Damaged } from '../../src/repository/faults.ts'
import { rebuildIndex } from '../../src/repository/rebuild-index.ts'
import { collect } from '../../src/repository/collector.ts'
import { forget } from '../../src/repository/points.ts'
import { verify, type VerifyLevel } from '../../src/repository/verify.ts'
import { MemoryTarget } from '../helpers/memory-target.ts'
import { done, newRepository, pushDisks, restored, sealer, sourceOf } from '../helpers/push-point.ts'
import { diskContent } from '../helpers/random-bytes.ts'

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
