// Large reads of a file, many at a time, without native help.

import { open, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { readUpTo } from '../../src/base/positional-io.ts'
import { ReadBatches } from '../../src/base/read-batches.ts'
import fc from '../helpers/property.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const SIZE = 3 << 20
const content = randomBytes(SIZE, 1)

t.test('each read gets its own bytes, as far as the file goes, whatever lies beside it and whatever fails', async t => {
  const image = `${t.testdir()}/image`
  await writeFile(image, content)
  await using file = await open(image)
  let together = 0
  const run = fc.record({
    offset: fc.nat(SIZE + 1000),
    lengths: fc.array(fc.oneof(fc.integer({ min: 1, max: 300_000 }), fc.constant(1 << 18)), { minLength: 1, maxLength: 8 }),
  })
  const outcome = fc.constantFrom('all', 'all', 'some', 'fails')
  await fc.assert(
    fc.asyncProperty(fc.array(run, { maxLength: 4 }), fc.array(outcome, { minLength: 1 }), async (runs, outcomes) => {
      let asked = 0
      const reads = new ReadBatches({
        async together(fd, into, offset) {
          together++
          const outcome = outcomes[asked++ % outcomes.length]
          if (outcome === 'fails') return 0
          let count = 0
          for (const bytes of outcome === 'all' ? into : into.slice(1)) count += await readUpTo(fd, offset + count, bytes)
          return count
        },
        alone: readUpTo,
      })
      await Promise.all(
        runs.flatMap(({ offset, lengths }) => {
          let at = offset
          return lengths.map(async length => {
            const [from, into] = [at, Buffer.alloc(length)]
            at += length
            const count = await reads.read(file.fd, from, into)
            const wanted = content.subarray(from, from + length)
            if (count !== wanted.length || !into.subarray(0, count).equals(wanted))
              throw new Error(`${length} bytes at ${from} differ`)
          })
        }),
      )
    }),
    { numRuns: 60 },
  )
  t.ok(together > 0)
})

t.test('by the calls of the system as well', async t => {
  const image = `${t.testdir()}/image`
  await writeFile(image, content)
  await using file = await open(image)
  const reads = new ReadBatches()
  const all = Array.from({ length: 14 }, (_, at) => ({ offset: at * 250_000, into: Buffer.alloc(250_000) }))
  const counts = await Promise.all(all.map(({ offset, into }) => reads.read(file.fd, offset, into)))
  t.equal(
    counts.reduce((sum, count) => sum + count, 0),
    SIZE,
  )
  t.ok(
    Buffer.concat(all.map(({ into }) => into))
      .subarray(0, SIZE)
      .equals(content),
  )
  await t.rejects(reads.read(1_000_000, 0, Buffer.alloc(10)), { code: 'EBADF' })
})

t.test('neighbours go together, up to 1 MiB, and one batch at a time', async t => {
  const seen: number[] = []
  let running = 0
  let most = 0
  const reads = new ReadBatches({
    async together(_fd, into) {
      most = Math.max(most, ++running)
      seen.push(into.length)
      await Promise.resolve()
      running--
      return into.reduce((sum, { length }) => sum + length, 0)
    },
    alone: async (_fd, _offset, into) => into.length,
  })
  const neighbours = [7, 6, 5, 4, 3, 2, 1, 0].toReversed().map(at => reads.read(3, at << 18, Buffer.alloc(1 << 18)))
  await Promise.all(neighbours)
  t.same([seen, most], [[4, 4], 1])
})

t.test('a read that hangs keeps those that came before it was known, and those that come later, for a moment', async t => {
  const hung = Promise.withResolvers<number>()
  const reads = new ReadBatches({
    together: async (_fd, into) => into.reduce((sum, { length }) => sum + length, 0),
    alone: async (_fd, offset, into) => (offset === 0 ? hung.promise : into.length),
  })
  const hangs = reads.read(3, 0, Buffer.alloc(10))
  await sleep(0)
  t.equal(await reads.read(3, 100, Buffer.alloc(20)), 20)
  t.equal(await reads.read(3, 200, Buffer.alloc(30)), 30)
  hung.resolve(10)
  t.equal(await hangs, 10)
})
