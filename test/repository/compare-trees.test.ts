// Two disks compared by their trees are as different as their chunks are, whatever the sizes, and what is the same is not read. What could
// not be read is asked for again.

import fc from '../helpers/property.ts'
import t from 'tap'
import { compareTrees } from '../../src/repository/compare-trees.ts'
import { RepositoryReader } from '../../src/repository/reader.ts'
import { Unavailable } from '../../src/repository/target.ts'
import { idOf } from '../../src/repository/walk.ts'
import { MemoryTarget } from '../helpers/memory-target.ts'
import { newRepository, pushDisks, sourceOf } from '../helpers/push-point.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const CHUNK = 65536

/** Chunks by number; the rest is zero. */
const disk = fc.record({
  chunks: fc.oneof(fc.integer({ min: 1, max: 12 }), fc.integer({ min: 250, max: 260 }), fc.integer({ min: 500, max: 520 })),
  data: fc.array(fc.tuple(fc.nat(519), fc.integer({ min: 1, max: 3 })), { maxLength: 12 }),
})

const bytesOf = ({ chunks, data }: { chunks: number; data: [number, number][] }) => {
  const bytes = Buffer.alloc(chunks * CHUNK)
  for (const [chunk, seed] of data) if (chunk < chunks) bytes.set(randomBytes(CHUNK, seed), chunk * CHUNK)
  return bytes
}

t.test('chunk by chunk', async t => {
  await fc.assert(
    fc.asyncProperty(disk, disk, fc.nat(519), async (one, other, cut) => {
      const repository = await newRepository(new MemoryTarget())
      const [a, b] = [bytesOf(one), bytesOf(other)]
      const { key: first } = await pushDisks(repository, [{ name: 'd', source: sourceOf(a) }])
      const { key: second } = await pushDisks(repository, [{ name: 'd', source: sourceOf(b) }])
      await using reader = await RepositoryReader.begin(repository, [first, second], { beatMs: 0 })
      const [x, y] = reader.points.map(({ manifest }) => manifest.disks[0]!)
      const count = Math.max(one.chunks, other.chunks)
      const from = Math.min(cut, count - 1)
      let next = from
      for await (const { first, count, differs } of compareTrees(reader.nodes, x!, y!, { from })) {
        if (first !== next || count < 1) throw new Error(`a gap at ${next}: ${first}, ${count}`)
        for (let chunk = first; chunk < first + count; chunk++) {
          const [p, q] = [a, b].map(bytes => {
            const part = bytes.subarray(chunk * CHUNK, (chunk + 1) * CHUNK)
            return part.length > 0 ? part : Buffer.alloc(CHUNK)
          })
          if (p!.equals(q!) === differs) throw new Error(`chunk ${chunk} is said to be ${differs ? 'different' : 'the same'}`)
        }
        next = first + count
      }
      if (next !== count) throw new Error(`ends at ${next} of ${count}`)
    }),
    { numRuns: 12 },
  )
  t.pass('for all pairs of disks')
})

t.test('what is the same is not looked into', async t => {
  const repository = await newRepository(new MemoryTarget())
  const bytes = bytesOf({
    chunks: 520,
    data: [
      [3, 1],
      [300, 2],
      [515, 3],
    ],
  }) // three leaves
  const { key: first } = await pushDisks(repository, [{ name: 'd', source: sourceOf(bytes) }])
  bytes.set(randomBytes(10, 9), 301 * CHUNK)
  const { key: second } = await pushDisks(repository, [{ name: 'd', source: sourceOf(bytes) }])
  await using reader = await RepositoryReader.begin(repository, [first, second], { beatMs: 0 })
  const [x, y] = reader.points.map(({ manifest }) => manifest.disks[0]!)
  const levels: number[] = []
  const nodes = {
    node: (id: Buffer, level: number) => {
      levels.push(level)
      return reader.nodes.node(id, level)
    },
  }
  const runs = (await Array.fromAsync(compareTrees(nodes, x!, y!))).filter(({ differs }) => differs)
  t.same(runs, [{ first: 301, count: 1, differs: true }])
  t.same(levels, [1, 1, 0, 0], 'two roots, and the leaf that differs')
})

for (const [name, options] of [
  ['', {}],
  [', of an encrypted repository too', { passphrase: 'secret' }],
] as const)
  t.test(`a node that the store did not give is asked for again${name}`, async t => {
    const target = new MemoryTarget()
    const repository = await newRepository(target, options)
    const bytes = bytesOf({ chunks: 520, data: [[300, 2]] })
    const { key } = await pushDisks(repository, [{ name: 'd', source: sourceOf(bytes) }])
    await using reader = await RepositoryReader.begin(repository, [key], { beatMs: 0 })
    const disk = reader.points[0]!.manifest.disks[0]!
    target.before = ({ key }) => {
      if (key.startsWith('meta/')) throw new Unavailable('the store is away')
    }
    await t.rejects(idOf(reader.nodes, disk, 300), Unavailable)
    target.before = () => {}
    t.ok(await idOf(reader.nodes, disk, 300))
  })
