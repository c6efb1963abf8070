// Writes of the file driver that go down together, on one thread.

import { readFileSync, writeFileSync } from 'node:fs'
import fc from '../helpers/property.ts'
import t from 'tap'
import type { FilePart } from '../../src/base/aio.ts'
import { native, type Native } from '../../src/base/native.ts'
import { writeAll } from '../../src/base/positional-io.ts'
import { FileNode } from '../../src/drivers/file.ts'
import { openContext } from '../helpers/open-context.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const skip = native ? false : 'koffi is not installed'
const SIZE = 1 << 20

const openFile = (image: string, changed: Partial<Native> = {}) => FileNode.open(image, openContext(), { ...native!, ...changed })

/** Neighbours, each of another length. */
function neighbours(lengths: readonly number[], seed: number) {
  let offset = 0
  return lengths.map((length, at) => {
    const write = { offset, data: randomBytes(length, seed + at) }
    offset += length
    return write
  })
}

const lengths = fc.array(fc.oneof(fc.integer({ min: 1, max: 5000 }), fc.constantFrom(4096, 32768, 32769)), {
  minLength: 1,
  maxLength: 150,
})

t.test('whatever part the system writes of those that go down together, all is written when they are done', { skip }, async t => {
  const image = `${t.testdir()}/image`
  type Done = number | undefined // a share of what was to be written; undefined: it cannot be done together
  const shares = fc.array(fc.constantFrom<Done>(1, 1, 1, 0, 0.5, 0.99, undefined), { minLength: 1, maxLength: 10 })
  await fc.assert(
    fc.asyncProperty(lengths, shares, fc.nat(1000), async (lengths, shares, seed) => {
      writeFileSync(image, Buffer.alloc(150 * 32769))
      let asked = 0
      const writeParts = async (parts: readonly FilePart[]) => {
        const share = shares[asked++ % shares.length]
        if (share === undefined) return undefined
        const counts = parts.map(({ bytes }) => Math.floor(bytes.length * share))
        for (const [at, { fd, offset, bytes }] of parts.entries()) await writeAll(fd, offset, bytes.subarray(0, counts[at]))
        return counts
      }
      await using file = await openFile(image, { writeParts })
      const writes = neighbours(lengths, seed)
      await Promise.all(
        writes.map(async ({ offset, data }) => {
          await file.write(offset, data)
          const there = Buffer.alloc(data.length)
          await file.read(offset, there)
          if (!there.equals(data)) throw new Error(`${data.length} bytes at ${offset} are not there when their write is done`)
        }),
      )
      const all = Buffer.concat(writes.map(({ data }) => data))
      if (!readFileSync(image).subarray(0, all.length).equals(all)) throw new Error('something else was written')
    }),
    { numRuns: 30 },
  )
  t.pass()
})

t.test('the system writes any number of them together', { skip }, async t => {
  const image = `${t.testdir()}/image`
  let together = 0
  const writeParts = async (parts: readonly FilePart[]) => {
    const counts = await native!.writeParts(parts)
    for (const [at, { bytes }] of parts.entries()) if (counts?.[at] === bytes.length) together++
    return counts
  }
  for (const count of [1, 2, 63, 64, 65, 200]) {
    writeFileSync(image, Buffer.alloc(SIZE))
    await using file = await openFile(image, { writeParts })
    const writes = neighbours(
      Array.from({ length: count }, (_, at) => 1 + at * 40),
      count,
    )
    await Promise.all(writes.toReversed().map(({ offset, data }) => file.write(offset, data)))
    const all = Buffer.concat(writes.map(({ data }) => data))
    t.ok(readFileSync(image).subarray(0, all.length).equals(all), `${count} writes`)
  }
  t.comment(`${together} were written so`)
})

t.test('writes of many files at once do not meet', { skip }, async t => {
  const folder = t.testdir()
  await using stack = new AsyncDisposableStack()
  const files: FileNode[] = []
  for (let at = 0; at < 20; at++) {
    writeFileSync(`${folder}/${at}`, Buffer.alloc(256 << 10))
    files.push(stack.use(await openFile(`${folder}/${at}`)))
  }
  const contents = files.map((_, at) => randomBytes(256 << 10, at))
  for (let round = 0; round < 4; round++)
    await Promise.all(
      Array.from({ length: 16 }, (_, at) => (at * 4 + round) * 4096).flatMap(offset =>
        files.map((file, of) => file.write(offset, contents[of]!.subarray(offset, offset + 4096))),
      ),
    )
  for (const [at, content] of contents.entries()) t.ok(readFileSync(`${folder}/${at}`).equals(content), `file ${at}`)
})

t.test('each of them that fails says why', { skip }, async t => {
  await using full = await openFile('/dev/full')
  const results = await Promise.allSettled(Array.from({ length: 10 }, (_, at) => full.write(at * 4096, Buffer.alloc(4096))))
  for (const result of results) {
    t.equal(result.status, 'rejected')
    if (result.status === 'rejected') t.match(result.reason, { name: 'NoSpace', message: /\/dev\/full/ })
  }
})
