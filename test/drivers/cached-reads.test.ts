// Reads of the file driver that need no thread, because the page cache holds what is asked for.

import { writeFileSync } from 'node:fs'
import t from 'tap'
import { native, type Native } from '../../src/base/native.ts'
import { FileNode } from '../../src/drivers/file.ts'
import { openContext } from '../helpers/open-context.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const skip = native ? false : 'koffi is not installed'
const SIZE = 1 << 20
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
    t.ok(await isRight(file, 1000, 200_000), 'a large one goes to a thread')
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
  await t.rejects(file.read(SIZE - 50, last), { message: /ends at 1048576/ }, 'what is not there is not there')
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
