// Chunks in memory, whose buffers are used again: whoever reads one has its bytes until they leave.

import t from 'tap'
import { ChunkCache, type Chunk } from '../../src/restore/chunk-cache.ts'
import fc from '../helpers/property.ts'

const SIZE = 64
const CHUNKS = 8
const isHole = (number: number) => number === 2
const isLost = (number: number) => number === 5
const bytesOf = (number: number) => Buffer.alloc(number === CHUNKS - 1 ? SIZE / 2 : SIZE, number + 1)

/** Turns of the microtask queue. */
async function turns(count: number) {
  for (let turn = 0; turn < count; turn++) await Promise.resolve()
}

function check(number: number, chunk: Chunk) {
  if (isHole(number) ? !chunk.isHole : !chunk.bytes?.equals(bytesOf(number))) throw new Error(`chunk ${number} has other bytes`)
}

/** Reads of neighbours that begin, arrive and end in any order. */
const reads = fc.array(
  fc.record({
    from: fc.nat(CHUNKS - 1),
    count: fc.integer({ min: 1, max: CHUNKS }),
    /** Only has them fetched. */
    ahead: fc.boolean(),
    begins: fc.nat(40),
    arrives: fc.array(fc.nat(10), { minLength: CHUNKS, maxLength: CHUNKS }),
    stays: fc.nat(10),
  }),
  { minLength: 1, maxLength: 12 },
)

t.test('readers have the bytes of their chunks until they leave, whoever else reads and whatever is kept', async t => {
  await fc.assert(
    fc.asyncProperty(reads, fc.integer({ min: 1, max: 4 }), async (reads, most) => {
      const cache = new ChunkCache(SIZE, most)
      const fetch = async (missing: ReadonlyMap<number, Chunk>, arrives: readonly number[]) => {
        for (const [number, chunk] of missing) {
          await turns(arrives[number]!)
          if (isHole(number)) chunk.arrivedEmpty()
          else if (isLost(number)) chunk.lost(new Error('lost'))
          else cache.fill(number, chunk, bytesOf(number))
        }
        for (const [number, chunk] of missing) cache.ended(number, chunk)
      }
      const read = async ({ from, count, ahead, begins, arrives, stays }: (typeof reads)[number]) => {
        await turns(begins)
        const missing = new Map<number, Chunk>()
        const chunks: [number, Chunk][] = []
        for (let number = from; number < Math.min(CHUNKS, from + count); number++) {
          let chunk = cache.find(number)
          if (!chunk) missing.set(number, (chunk = cache.expect(number)))
          chunks.push([number, chunk])
          if (!ahead) cache.enter(chunk)
        }
        const fetching = fetch(missing, arrives)
        if (!ahead) {
          for (const [number, chunk] of chunks) {
            const [ready] = await Promise.allSettled([chunk.ready])
            if (isLost(number) !== (ready.status === 'rejected')) throw new Error(`chunk ${number} came to another end`)
            if (isLost(number)) continue
            check(number, chunk)
            await turns(stays)
            check(number, chunk)
          }
          for (const [, chunk] of chunks) cache.leave(chunk)
        }
        await fetching
      }
      await Promise.all(reads.map(read))
    }),
    { numRuns: 300 },
  )
  t.pass()
})

t.test('a buffer is used again once what is in it is neither kept nor read', async t => {
  const cache = new ChunkCache(SIZE, 1)
  const [read, kept, next, last] = [0, 1, 3, 4].map(number => [number, cache.expect(number)] as const)
  cache.enter(read![1])
  cache.fill(...read!, bytesOf(0))
  const { room } = read![1]
  cache.fill(...kept!, bytesOf(1))
  t.equal(cache.find(0), undefined, 'it is kept no longer')
  cache.fill(...next!, bytesOf(3))
  t.not(next![1].room, room, 'somebody reads it')
  cache.leave(read![1])
  cache.fill(...last!, bytesOf(4))
  t.equal(last![1].room, room)
})
