// A disk of a restore point that several read in order at once, each at a place of its own, as one does over several connections.

import t from 'tap'
import { RepositoryReader } from '../../src/repository/reader.ts'
import { PointDisk } from '../../src/restore/point-disk.ts'
import { MemoryTarget } from '../helpers/memory-target.ts'
import { newRepository, pushDisks, sealer, sourceOf } from '../helpers/push-point.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const CHUNK = 65536
const HALF = 96
const content = randomBytes(2 * HALF * CHUNK, 1)

async function opened() {
  const target = new MemoryTarget()
  const repository = await newRepository(target, {})
  const { key } = await pushDisks(repository, [{ name: 'root', source: sourceOf(content) }])
  const reader = await RepositoryReader.begin(repository, [key], { beatMs: 0 })
  const disk = new PointDisk({ reader, disk: reader.points[0]!.manifest.disks[0]!, sealer })
  return {
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
