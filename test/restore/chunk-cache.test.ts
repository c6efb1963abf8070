// Chunks in memory, whose buffers are used again: whoever reads one has its bytes until they leave.

import t from 'tap'
import { ChunkCache, type Chunk } from '../../src/restore/chunk-cache.ts'
import fc from '../helpers/property.ts'

const SIZE = 64
const CHUNKS = 8
const isHole = (number: number) => number === 2
const isLost = (number: number) => number === 5
const bytesOf = (number: number) => Buffer.alloc(number === CHUNKS - 1 ? SIZE / 2 : SIZE, number + 1)

const wholeOf = (number: number) => ({ from: 0, into: Buffer.alloc(bytesOf(number).length) })
/** What somebody else has in the memory that a reader had. */
const OTHERS = 0xee

/** Turns of the microtask queue. */
async function turns(count: number) {
  for (let turn = 0; turn < count; turn++) await Promise.resolve()
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
    /** Wants a part only of each. */
    isPart: fc.boolean(),
  }),
  { minLength: 1, maxLength: 12 },
)

t.test(
  'readers are given the bytes of their chunks, and nothing once they have left, whoever else reads and whatever is kept',
  async t => {
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
        const read = async ({ from, count, ahead, begins, arrives, stays, isPart }: (typeof reads)[number]) => {
          await turns(begins)
          const missing = new Map<number, Chunk>()
          const parts: { number: number; chunk: Chunk; from: number; into: Buffer }[] = []
          for (let number = from; number < Math.min(CHUNKS, from + count); number++) {
            let chunk = cache.find(number)
            if (!chunk) missing.set(number, (chunk = cache.expect(number)))
            const part = { number, chunk, ...(isPart ? { from: 8, into: Buffer.alloc(9) } : wholeOf(number)) }
            parts.push(part)
            if (!ahead) cache.enter(chunk, part)
          }
          const fetching = fetch(missing, arrives)
          if (!ahead) {
            for (const part of parts) {
              const { number, chunk, from, into } = part
              const [ready] = await Promise.allSettled([cache.read(number, chunk, part)])
              if (isLost(number) !== (ready.status === 'rejected')) throw new Error(`chunk ${number} came to another end`)
              if (isLost(number)) continue
              const right = isHole(number) ? Buffer.alloc(into.length) : bytesOf(number).subarray(from, from + into.length)
              if (!into.equals(right)) throw new Error(`chunk ${number} has other bytes`)
              if (stays > 5) break // another one failed, or the client is gone
              await turns(stays)
            }
            for (const part of parts) {
              cache.leave(part.chunk, part)
              part.into.fill(OTHERS)
            }
          }
          await fetching
          for (const { into } of parts)
            if (!ahead && !into.equals(Buffer.alloc(into.length, OTHERS))) throw new Error('written to')
        }
        await Promise.all(reads.map(read))
      }),
      { numRuns: 300 },
    )
    t.pass()
  },
)

const part = { from: 8, into: Buffer.alloc(4) }

t.test('a buffer is used again once what is in it is neither kept nor read', async t => {
  const cache = new ChunkCache(SIZE, 1)
  const [read, kept, next, last] = [0, 1, 3, 4].map(number => [number, cache.expect(number)] as const)
  cache.enter(read![1], part)
  cache.fill(...read!, bytesOf(0))
  const { room } = read![1]
  cache.fill(...kept!, bytesOf(1))
  t.equal(cache.find(0), undefined, 'it is kept no longer')
  cache.fill(...next!, bytesOf(3))
  t.not(next![1].room, room, 'somebody reads it')
  cache.leave(read![1], part)
  cache.fill(...last!, bytesOf(4))
  t.equal(last![1].room, room)
})

t.test('a chunk that somebody was given all of is not kept, and one that was read in part is', async t => {
  const cache = new ChunkCache(SIZE, 4)
  const [inPart, whole, end] = [0, 1, CHUNKS - 1].map(number => [number, cache.expect(number)] as const)
  cache.enter(inPart![1], part)
  for (const [number, chunk] of [whole!, end!]) {
    cache.enter(chunk, part)
    cache.enter(chunk, wholeOf(number))
  }
  for (const one of [inPart!, whole!, end!]) cache.fill(...one, bytesOf(one[0]))
  t.equal(cache.find(0), inPart![1])
  t.equal(cache.find(1), undefined)
  t.equal(cache.find(CHUNKS - 1), undefined, 'the last one is shorter')
})

t.test('a chunk that was fetched ahead is kept until somebody has read all of it', async t => {
  const cache = new ChunkCache(SIZE, 4)
  const ahead = cache.expect(1)
  cache.fill(1, ahead, bytesOf(1))
  const readBy = async (taker: { from: number; into: Buffer }) => {
    cache.enter(ahead, taker)
    await cache.read(1, ahead, taker)
    cache.leave(ahead, taker)
  }
  await readBy(part)
  t.equal(cache.find(1), ahead, 'a part of it was read')
  const whole = wholeOf(1)
  await readBy(whole)
  t.same(whole.into, bytesOf(1))
  t.equal(cache.find(1), undefined)
})
