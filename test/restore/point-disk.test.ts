// A disk of a restore point that several read in order at once, each at a place of its own, as one does over several connections.

import t from 'tap'
import { RepositoryReader } from '../../src/repository/reader.ts'
import { PointDisk } from '../../src/restore/point-disk.ts'
import { SharedCache } from '../../src/restore/shared-cache.ts'
import { MemoryTarget } from '../helpers/memory-target.ts'
import { newRepository, pushDisks, sealer, sourceOf } from '../helpers/push-point.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const CHUNK = 65536
const HALF = 96
const content = randomBytes(2 * HALF * CHUNK, 1)

async function opened(cache?: SharedCache) {
  const target = new MemoryTarget()
  const repository = await newRepository(target, {})
  const { key } = await pushDisks(repository, [{ name: 'root', source: sourceOf(content) }])
  const reader = await RepositoryReader.begin(repository, [key], { beatMs: 0 })
  const disk = new PointDisk({ reader, disk: reader.points[0]!.manifest.disks[0]!, sealer, cache })
  return {
    async readParts() {
      for (let chunk = 0; chunk < 2 * HALF; chunk++) await disk.read(chunk * CHUNK, Buffer.alloc(512))
    },
    async read(chunk: number, count = 1) {
      const into = Buffer.alloc(count * CHUNK)
      await disk.read(chunk * CHUNK, into)
      const offset = chunk * CHUNK
      if (!into.equals(content.subarray(offset, offset + into.length))) throw new Error(`chunk ${chunk} has other bytes`)
    },
    requests: () => target.requests.filter(({ key }) => key.startsWith('packs')).length,
    async [Symbol.asyncDispose]() {
      await disk[Symbol.asyncDispose]()
      await reader[Symbol.asyncDispose]()
    },
  }
}

t.test('two who read in order, in turns or with much under way, are fetched for in requests of many chunks', async t => {
  for (const depth of [1, 64]) {
    await using disk = await opened()
    const before = disk.requests()
    for (let chunk = 0; chunk < HALF; chunk += depth) {
      const together = Array.from({ length: Math.min(depth, HALF - chunk) }, (_, at) => chunk + at)
      await Promise.all(together.flatMap(number => [disk.read(number), disk.read(HALF + number)]))
    }
    const requests = disk.requests() - before
    t.ok(requests <= 24, `${requests} requests for ${2 * HALF} chunks, ${depth} at a time`)
  }
})

t.test('whoever reads here and there is fetched for what he reads', async t => {
  await using disk = await opened()
  await disk.read(5) // the first asks whose pack it is
  const before = disk.requests()
  for (const chunk of [150, 3, 77, 20, 79]) await disk.read(chunk)
  t.equal(disk.requests() - before, 5)
})

t.test('disks that share a cache keep as much together as one alone', async t => {
  const cache = new SharedCache(16 << 20)
  await using disk = await opened(cache)
  const asked = async () => {
    const before = disk.requests()
    await disk.readParts()
    return disk.requests() - before
  }
  await asked()
  t.equal(await asked(), 0, 'all 12 MiB of it are kept')
  {
    await using _other = await opened(cache)
    t.ok((await asked()) > 0, 'and 8 MiB beside another')
    t.ok((await asked()) > 0)
  }
  await asked()
  t.equal(await asked(), 0, 'and all of it again when the other is closed')
})
