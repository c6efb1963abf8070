// A cache before a store: what of it is damaged, or belongs elsewhere, is thrown away and fetched again; so is what the store gave damaged before it
// was mended; there is about as much of it as may be, and it serves the next one who comes.

import { readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import t from 'tap'
import { Damaged } from '../../src/repository/faults.ts'
import { RepositoryReader } from '../../src/repository/reader.ts'
import { Repository } from '../../src/repository/repository.ts'
import { CachedTarget } from '../../src/restore/cached-target.ts'
import { PointDisk } from '../../src/restore/point-disk.ts'
import { MemoryTarget } from '../helpers/memory-target.ts'
import { newRepository, pushDisks, sealer, sourceOf } from '../helpers/push-point.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const SIZE = 48 * 65536
const content = randomBytes(SIZE, 1)

async function cached(passphrase: string | undefined) {
  const target = new MemoryTarget()
  const made = await newRepository(target, { passphrase })
  const { key } = await pushDisks(made, [{ name: 'root', source: sourceOf(content) }])
  const folder = t.testdir({ [`cache${passphrase}`]: {} })
  /** What the disk reads as by somebody who comes anew. */
  const read = async (bytes = 1 << 30) => {
    await using cache = await CachedTarget.open(target, { folder, bytes, warn: message => t.fail(message) })
    const repository = (await Repository.open(target, passphrase === undefined ? {} : { passphrase })).through(cache)
    await using reader = await RepositoryReader.begin(repository, [key], { beatMs: 0 })
    await using disk = new PointDisk({ reader, disk: reader.points[0]!.manifest.disks[0]!, sealer, cacheBytes: 0 })
    const found = Buffer.alloc(SIZE)
    target.requests.length = 0
    await disk.read(0, found)
    return { isRight: found.equals(content), asked: target.requests.filter(({ key }) => /^(packs|meta)/.test(key)).length }
  }
  const blocks = () =>
    readdirSync(folder, { recursive: true, withFileTypes: true })
      .filter(entry => entry.isFile())
      .map(({ parentPath, name }) => `${parentPath}/${name}`)
      .sort()
  return { target, read, blocks }
}

for (const passphrase of [undefined, 'x'])
  t.test(`what is wrong in a cache is fetched again, and nothing else is: ${passphrase ? 'encrypted' : 'plain'}`, async t => {
    const { target, read, blocks } = await cached(passphrase)
    t.match(await read(), { isRight: true })
    t.same(await read(), { isRight: true, asked: 0 }, 'whoever comes next asks for nothing')
    const all = blocks()
    t.ok(all.length >= 10, `${all.length} blocks`)
    const flipped = readFileSync(all[3]!)
    flipped[flipped.length >> 1]! ^= 1
    writeFileSync(all[3]!, flipped)
    const [one, other] = [all[5]!, all[6]!]
    renameSync(one, `${one}.x`)
    renameSync(other, one)
    renameSync(`${one}.x`, other)
    const healed = await read()
    t.ok(healed.isRight, 'flipped, and two in the place of each other')
    t.ok(healed.asked > 0)
    t.same(await read(), { isRight: true, asked: 0 }, 'and it is mended')

    // The store gives every pack damaged, then has them as they were.
    const whole = new Map([...target.store.objects].filter(([key]) => /^(packs|meta)/.test(key)))
    for (const path of all) writeFileSync(path, '')
    for (const [key, { body }] of whole) target.store.set(key, Buffer.from(body).fill(7, 300))
    await t.rejects(read(), Damaged)
    for (const [key, { body }] of whole) target.store.set(key, body)
    t.match(await read(), { isRight: true }, 'what was cached damaged is not believed')
    t.match(await read(), { isRight: true, asked: 0 })
  })

t.test('a cache where no folder can be made is refused at once', async t => {
  const folder = t.testdir({ file: '' })
  for (const [place, sentence] of [
    ['/proc/stillpoint/cache', /No such file or directory/],
    [`${folder}/file`, /Not a directory/],
    [`${folder}/file/cache`, /Not a directory/],
  ] as const)
    await t.rejects(CachedTarget.open(new MemoryTarget(), { folder: place, bytes: 1 << 20, warn: message => t.fail(message) }), {
      name: 'IoError',
      message: new RegExp(`Could not use '${place}' as a cache; name another folder: ${sentence.source}`),
    })
  for (let count = 0; count < 2; count++) {
    await using _made = await CachedTarget.open(new MemoryTarget(), {
      folder: `${folder}/a/b/`,
      bytes: 1 << 20,
      warn: message => t.fail(message),
    })
  }
  t.equal(statSync(`${folder}/a/b`).mode & 0o777, 0o700)
})

t.test('there is about as much in a cache as may be, whoever writes it', async t => {
  const { read, blocks } = await cached(undefined)
  for (let count = 0; count < 3; count++) t.ok((await read(1 << 20)).isRight)
  await read(1)
  const sum = blocks().reduce((sum, path) => sum + statSync(path).size, 0)
  t.ok(sum <= 300_000, `${sum} bytes`)
})
