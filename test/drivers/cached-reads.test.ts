// Reads of the file driver that need no thread, because the page cache holds what is asked for.

import { writeFileSync } from 'node:fs'
import fc from '../helpers/property.ts'
import t from 'tap'
import { native, type Native } from '../../src/base/native.ts'
import { FileNode } from '../../src/drivers/file.ts'
import { openContext } from '../helpers/open-context.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const skip = native ? false : 'koffi is not installed'
const SIZE = 2 << 20
const content = randomBytes(SIZE, 1)

async function openFile(folder: string, stack: AsyncDisposableStack, changed: Partial<Native> = {}) {
  writeFileSync(`${folder}/image`, content)
  return stack.use(await FileNode.open(`${folder}/image`, openContext(), { ...native!, ...changed }))
}

async function isRight(file: FileNode, offset: number, length: number) {
  const into = Buffer.alloc(length)
  await file.read(offset, into)
  return into.equals(content.subarray(offset, offset + length))
}

t.test('whatever part the page cache has, the whole is read', { skip }, async t => {
  for (const [what, cached] of Object.entries<(length: number) => number | undefined>({
    'all of it': length => length,
    'a part': length => length >> 1,
    'one byte': () => 1,
    nothing: () => 0,
    'nobody can tell': () => undefined,
  })) {
    await using stack = new AsyncDisposableStack()
    let asked = 0
    const file = await openFile(t.testdir(), stack, {
      readCached(_fd, offset, into) {
        asked++
        const count = cached(into.length)
        content.copy(into, 0, offset, offset + (count ?? 0))
        return count
      },
    })
    for (let at = 0; at < 20; at++) t.ok(await isRight(file, at * 5000 + 3, 4096 + at), what)
    t.equal(asked, what === 'nobody can tell' ? 1 : 20, `${what}: asked`)
    t.ok(await isRight(file, 1000, 1_100_000), 'a large one goes to a thread')
    t.equal(asked, what === 'nobody can tell' ? 1 : 20)
  }
})

t.test('the system does so', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  let held = 0
  const file = await openFile(t.testdir(), stack, {
    readCached(fd, offset, into) {
      const count = native!.readCached(fd, offset, into)
      held += count ?? 0
      return count
    },
  })
  for (let at = 0; at < 50; at++) t.ok(await isRight(file, (at * 77_777) % (SIZE - 9000), 1 + at * 100))
  t.comment(`${held} bytes were in the page cache`)
  const last = Buffer.alloc(100)
  await t.rejects(file.read(SIZE - 50, last), { message: /ends at 2097152/ }, 'what is not there is not there')
})

t.test('more than a turn of the event loop takes is read in those that follow, and without a thread', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const LARGE = 256 << 10
  let [asked, inTurn, most, over] = [0, 0, 0, false]
  const file = await openFile(t.testdir(), stack, {
    readCached(_fd, offset, into) {
      asked++
      inTurn += into.length
      most = Math.max(most, inTurn)
      return content.copy(into, 0, offset, offset + into.length)
    },
  })
  const endTurn = () => {
    inTurn = 0
    if (!over) setImmediate(endTurn)
  }
  endTurn()
  const reads = Array.from({ length: 300 }, (_, at) => isRight(file, (at * 77_777) % (SIZE - LARGE), at % 3 === 0 ? LARGE : 4096))
  t.ok((await Promise.all(reads)).every(right => right))
  over = true
  t.equal(asked, 300)
  t.ok(most <= 2 * ((1 << 20) + LARGE), `${most} bytes in a turn`) // whose ends, the file's and ours, fall together or side by side
})

t.test('of reads that are asked for together, those that are ready are right and the others are not begun', { skip }, async t => {
  const image = `${t.testdir()}/image`
  writeFileSync(image, content)
  type Told = number | undefined // a share of what was asked for; undefined: nobody can tell
  const told = fc.array(fc.oneof(fc.double({ min: 0, max: 1, noNaN: true }), fc.constantFrom<Told>(1, 0, undefined)), {
    minLength: 1,
    maxLength: 200,
  })
  await fc.assert(
    fc.asyncProperty(told, fc.boolean(), fc.nat(), async (told, together, seed) => {
      const answers = new Map<number, Told>()
      const answer = (offset: number, bytes: Buffer) => {
        const share = answers.get(offset)
        const count = share === undefined ? undefined : Math.floor(bytes.length * share)
        content.copy(bytes, 0, offset, offset + (count ?? 0))
        return count
      }
      await using file = await FileNode.open(image, openContext(), {
        ...native!,
        readCached: (_fd, offset, into) => answer(offset, into),
        readCachedParts: parts => (together ? parts.map(({ offset, bytes }) => answer(offset, bytes)) : undefined),
      })
      const reads = told.map((share, at) => {
        const offset = at * 5000 + (seed % 4999)
        answers.set(offset, share)
        return { offset, bytes: Buffer.alloc(1 + ((seed + at * 977) % 8192)), ready: false }
      })
      file.readReady(reads)
      for (const [at, { offset, bytes, ready }] of reads.entries()) {
        if (ready && !(told[at] === 1)) throw new Error(`read ${at} was said to be ready, and was so by ${told[at]}`)
        if (ready && !bytes.equals(content.subarray(offset, offset + bytes.length))) throw new Error(`read ${at} is wrong`)
        const into = Buffer.alloc(bytes.length)
        await file.read(offset, into)
        if (!into.equals(content.subarray(offset, offset + into.length))) throw new Error(`read ${at} is wrong the second time`)
      }
      if (told.every(share => share === 1)) t.ok(reads.every(({ ready }) => ready))
    }),
    { numRuns: 40 },
  )
})

t.test('the system reads any number of them together', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const file = await openFile(t.testdir(), stack)
  for (const count of [1, 2, 64, 65, 200]) {
    const reads = Array.from({ length: count }, (_, at) => ({
      offset: (at * 77_777) % (SIZE - 9000),
      bytes: Buffer.alloc(1 + at * 40),
      ready: false,
    }))
    file.readReady(reads)
    for (const { offset, bytes, ready } of reads)
      if (ready && !bytes.equals(content.subarray(offset, offset + bytes.length))) t.fail(`${bytes.length} bytes at ${offset}`)
    t.comment(`${reads.filter(({ ready }) => ready).length} of ${count} were in the page cache`)
  }
  const past = [SIZE - 50, SIZE + 50, 0].map(offset => ({ offset, bytes: Buffer.alloc(100), ready: false }))
  file.readReady(past)
  t.notOk(past[0]!.ready || past[1]!.ready, 'what is not there is not there')
  const large = [{ offset: 0, bytes: Buffer.alloc(200_000), ready: false }]
  file.readReady(large)
  t.notOk(large[0]!.ready, 'a large one goes to a thread')
})

t.test('who reads in a loop does not keep everybody else waiting', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const file = await openFile(t.testdir(), stack)
  let ended = false
  let turns = 0
  const count = () => {
    turns++
    if (!ended) setImmediate(count)
  }
  setImmediate(count)
  for (let at = 0; at < 1000; at++) await isRight(file, at * 900, 512)
  ended = true
  t.ok(turns >= 10, `${turns} turns of the event loop in a thousand reads`)
})
