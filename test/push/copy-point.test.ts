// Restore points copied from one repository to another: the same disks, by other keys, and nothing twice.

import t from 'tap'
import { InvalidParameter } from '../../src/base/errors.ts'
import { copyPoint } from '../../src/push/copy-point.ts'
import { Damaged } from '../../src/repository/faults.ts'
import { forget } from '../../src/repository/points.ts'
import { RepositoryReader } from '../../src/repository/reader.ts'
import { verify } from '../../src/repository/verify.ts'
import { MemoryTarget } from '../helpers/memory-target.ts'
import { done, newRepository, pushDisks, restored, sealer, sourceOf } from '../helpers/push-point.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'

const CHUNK = 65536

const from = await newRepository(new MemoryTarget(), { passphrase: 'from' })
const root = diskContent(300 * CHUNK + 1000, 1)
const data = diskContent(20 * CHUNK, 2)
const pushed = (bytes: Buffer, checkpoint: string) =>
  pushDisks(
    from,
    [
      { name: 'root', source: sourceOf(bytes), checkpoint },
      { name: 'data', source: sourceOf(data) },
    ],
    { consistency: 'quiesced', attachments: [{ name: 'config', bytes: Buffer.from('memory: 1G\n') }] },
  )
const first = await pushed(root, 'c1')
const changed = Buffer.concat([root, diskContent(10 * CHUNK, 3)])
changed.set(randomBytes(3000, 4), 100 * CHUNK - 1500)
changed.fill(0, 200 * CHUNK, 210 * CHUNK)
const second = await pushed(changed, 'c2')

const copy = (key: string, to: Awaited<ReturnType<typeof newRepository>>) => done(copyPoint({ from, key, to, beatMs: 0 }))

for (const passphrase of ['to', undefined])
  t.test(`copied to a repository ${passphrase ? 'with another key' : 'without one'} a restore point is what it was`, async t => {
    const target = new MemoryTarget()
    const to = await newRepository(target, passphrase ? { passphrase } : {})
    const told = await copy(first.key, to)
    t.match(told, { key: first.key, new: true, since: undefined })
    t.ok((await restored(to, first.key, 'root')).equals(root))
    t.ok((await restored(to, first.key, 'data')).equals(data))
    const { manifest } = await to.point(first.key)
    t.match(manifest, {
      ...first.manifest,
      repository: to.id,
      disks: first.manifest.disks.map(({ name, checkpoint }) => ({ name, checkpoint })),
      attachments: [{ name: 'config' }],
    })
    await using reader = await RepositoryReader.begin(to, [first.key], { beatMs: 0 })
    t.equal((await reader.attachment(manifest.attachments[0]!.id)).toString(), 'memory: 1G\n')

    const puts = target.requests.filter(({ op, key }) => op === 'put' && key.startsWith('packs/')).length
    t.match(await copy(first.key, to), { key: first.key, new: false, read: 0, stored: 0 })
    t.equal(target.requests.filter(({ op, key }) => op === 'put' && key.startsWith('packs/')).length, puts)

    const next = await copy(second.key, to)
    t.match(next, { key: second.key, new: true, since: first.key })
    t.ok(next.read <= 14 * CHUNK, `only what changed is read: ${next.read} bytes`)
    t.ok((await restored(to, second.key, 'root')).equals(changed))
    t.equal((await to.point(second.key)).manifest.disks[0]!.read.mode, 'bitmap')
    t.same((await done(verify(to, { level: 'deep', sealer }))).damagedPoints, [])
  })

t.test('older ones, too, may come later, and what was forgotten comes back as another', async t => {
  const to = await newRepository(new MemoryTarget())
  await copy(second.key, to)
  const told = await copy(first.key, to)
  t.match(told, { since: second.key, new: true })
  t.ok(told.added <= 13 * CHUNK, `${told.added} bytes`)
  t.ok((await restored(to, first.key, 'root')).equals(root))
  await forget(to, first.key)
  const again = await copy(first.key, to)
  t.not(again.key, first.key)
  t.match(again, { new: true, added: 0 })
  t.ok((await restored(to, again.key, 'root')).equals(root))
})

t.test('disks whose chunks have another size there are copied all the same', async t => {
  const to = await newRepository(new MemoryTarget(), { chunkSize: 4 * CHUNK })
  await pushDisks(to, [{ name: 'root', source: sourceOf(root) }], { chunkSize: 4 * CHUNK })
  await copy(first.key, to)
  t.equal((await to.point(first.key)).manifest.disks[0]!.chunkSize, 4 * CHUNK)
  await copy(second.key, to)
  t.ok((await restored(to, first.key, 'root')).equals(root))
  t.ok((await restored(to, second.key, 'root')).equals(changed))
})

t.test('a restore point that is damaged is not copied, nor one to where it is', async t => {
  const to = await newRepository(new MemoryTarget())
  await t.rejects(done(copyPoint({ from, key: first.key, to: from })), InvalidParameter)
  const broken = new MemoryTarget()
  const source = await newRepository(broken)
  const { key } = await pushDisks(source, [{ name: 'root', source: sourceOf(root) }])
  for (const [name, { body }] of broken.store.objects)
    if (name.startsWith('packs/')) broken.store.set(name, Buffer.from(body).fill(9, body.length >> 1))
  await t.rejects(done(copyPoint({ from: source, key, to, beatMs: 0 })), Damaged)
  t.same(await to.pointKeys(), [])
})
