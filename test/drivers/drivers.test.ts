// The conformance suite over every driver, and what each does of its own.

import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, statSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { InvalidParameter, IoError, NotSupported } from '../../src/base/errors.ts'
import { native } from '../../src/base/native.ts'
import { alignDown, endOf, type Range } from '../../src/base/ranges.ts'
import { INSIDE } from '../../src/base/seek-terms.ts'
import { SeekThreads, startWorker, type SeekThreadsOptions } from '../../src/base/seek-threads.ts'
import { FileData } from '../../src/drivers/file-data.ts'
import { file, FileNode, hostDevice } from '../../src/drivers/file.ts'
import { nullCo } from '../../src/drivers/null-co.ts'
import { raw } from '../../src/drivers/raw.ts'
import { blockNodeSuite, checkExtents, readAt } from '../helpers/block-node-suite.ts'
import { fileNode, openContext, scratchFile } from '../helpers/open-context.ts'
import fc from '../helpers/property.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const MiB = 1 << 20
const nativeMissing = !native && 'koffi does not load here'

blockNodeSuite(t, 'file', async (content, stack) => file.open({ filename: await scratchFile(content, stack) }, openContext()))
blockNodeSuite(t, 'file without native help', async (content, stack) =>
  FileNode.open(await scratchFile(content, stack), openContext(), undefined),
)

blockNodeSuite(t, 'raw with an odd offset and size', async (content, stack) => {
  const around = Buffer.concat([randomBytes(333, 1), content, randomBytes(777, 2)])
  const below = await fileNode(around, stack)
  stack.defer(async () => {
    const after = await readAt(below, 0, around.length)
    if (!after.subarray(0, 333).equals(around.subarray(0, 333))) throw new Error('bytes before the window changed')
    if (!after.subarray(-777).equals(around.subarray(-777))) throw new Error('bytes behind the window changed')
  })
  return raw.open(raw.options.parse({ offset: 333, size: content.length }), openContext({ children: { file: below } }))
})

blockNodeSuite(
  t,
  'null-co',
  content => nullCo.open(nullCo.options.parse({ size: content.length, 'read-zeroes': true }), openContext()),
  { stores: false },
)

t.test("a file that cannot be opened says why in QEMU's words", async t => {
  const folder = t.testdir({ folder: {} })
  await t.rejects(file.open({ filename: `${folder}/nope` }, openContext()), {
    message: `Could not open '${folder}/nope': No such file or directory`,
  })
  await t.rejects(file.open({ filename: folder }, openContext()), { message: `Could not open '${folder}': Is a directory` })
  await t.rejects(file.open({ filename: folder }, openContext({ readOnly: true })), InvalidParameter)
  await t.rejects(hostDevice.open({ filename: `${folder}/nope` }, openContext()), {
    message: `Could not open '${folder}/nope': No such file or directory`,
  })
  writeFileSync(`${folder}/regular`, '')
  await t.rejects(hostDevice.open({ filename: `${folder}/regular` }, openContext()), InvalidParameter)
})

t.test('a read-only file is never written', async t => {
  await using stack = new AsyncDisposableStack()
  const node = stack.use(
    await file.open({ filename: await scratchFile(Buffer.alloc(10), stack) }, openContext({ readOnly: true })),
  )
  await t.rejects(node.write(0, Buffer.alloc(1)), IoError)
})

t.test('a file that somebody else cuts short fails its reads and does not invent bytes', async t => {
  await using stack = new AsyncDisposableStack()
  const filename = await scratchFile(randomBytes(MiB, 1), stack)
  const node = stack.use(await file.open({ filename }, openContext()))
  truncateSync(filename, 1000)
  await t.rejects(readAt(node, 500, 1000), {
    name: 'IoError',
    message: `${filename}: ends at 1000, and not at ${MiB}: something else has cut it short`,
  })
  t.ok((await readAt(node, 0, 1000)).equals(randomBytes(MiB, 1).subarray(0, 1000)), 'what is there still reads')
})

t.test('zeroing with unmap and discarding give space back, zeroing without sets it aside', { skip: nativeMissing }, async t => {
  await using stack = new AsyncDisposableStack()
  const filename = await scratchFile(randomBytes(4 * MiB, 1), stack)
  const node = stack.use(await file.open({ filename }, openContext()))
  const allocated = () => statSync(filename).blocks * 512

  await node.flush()
  t.equal(allocated(), 4 * MiB)
  await node.zero({ offset: 0, length: MiB }, { unmap: true, fast: true })
  t.equal(allocated(), 3 * MiB, 'a hole')
  await node.discard({ offset: MiB, length: MiB })
  t.equal(allocated(), 2 * MiB, 'another')
  await node.zero({ offset: 0, length: 3 * MiB }, { fast: true })
  t.equal(allocated(), 4 * MiB, 'filled again')
  t.ok((await readAt(node, 0, 3 * MiB)).equals(Buffer.alloc(3 * MiB)))
})

t.test('a discard does nothing when the node was not opened with discard: unmap', async t => {
  await using stack = new AsyncDisposableStack()
  const content = randomBytes(MiB, 1)
  const node = stack.use(await file.open({ filename: await scratchFile(content, stack) }, openContext({ unmap: false })))
  await node.discard({ offset: 0, length: MiB })
  t.ok((await readAt(node, 0, MiB)).equals(content))
})

t.test(
  'holes are where qemu-img map sees them',
  { skip: nativeMissing || (spawnSync('qemu-img', ['--version']).error && 'qemu-img is missing') },
  async t => {
    await using stack = new AsyncDisposableStack()
    const filename = await scratchFile(Buffer.alloc(0), stack)
    truncateSync(filename, 8 * MiB) // a multiple of 512, as QEMU rounds others up
    const node = stack.use(await file.open({ filename }, openContext()))
    for (const offset of [0, 65536, 3 * MiB + 4096, 7 * MiB]) await node.write(offset, randomBytes(5000, offset))
    // So many pieces that a thread is asked.
    for (let offset = 4 * MiB; offset < 7 * MiB; offset += 8192) await node.write(offset, randomBytes(4096, 1))
    await node.flush()
    const { stdout } = spawnSync('qemu-img', ['map', '-f', 'raw', '--output=json', filename], { encoding: 'utf8' })
    const theirs = (JSON.parse(stdout) as { start: number; length: number; zero: boolean }[]).map(({ start, length, zero }) => ({
      offset: start,
      length,
      zero,
    }))
    const ours = await checkExtents(node, { offset: 0, length: node.size }, await readAt(node, 0, node.size))
    t.same(
      ours.map(({ offset, length, zero }) => ({ offset, length, zero })),
      theirs,
    )
  },
)

/** Over a file, by threads of its own; `ready` when they are there. */
async function fileData(size: number, stack: AsyncDisposableStack, options: SeekThreadsOptions = {}, mostPieces?: number) {
  const filename = await scratchFile(Buffer.alloc(0), stack)
  truncateSync(filename, size)
  const fd = openSync(filename, 'r+')
  stack.defer(() => closeSync(fd))
  const threads = new SeekThreads({ startAfter: 1, ...options })
  const data = new FileData(native, filename, threads, mostPieces)
  const extents = (range: Range) => data.extents(() => fd, range)
  const ready = async () => {
    for (let found; !found;) {
      found = await threads.find({ fd, offset: 0, end: size, most: 1 })
      if (!found) await sleep(5)
    }
  }
  return { filename, fd, threads, extents, ready }
}

t.test(
  'what is data and what is a hole is told as it is when it is asked for, whatever was there before',
  { skip: nativeMissing },
  async () => {
    await using stack = new AsyncDisposableStack()
    const PAGE = 4096 // no file system has a coarser one here
    const PAGES = 300
    const { fd, extents, ready } = await fileData(PAGES * PAGE, stack, {}, 16)
    await ready()
    const model = Array.from({ length: PAGES }, () => false)
    const range = fc.tuple(fc.nat(PAGES * PAGE - 1), fc.nat(PAGES * PAGE)).map(([offset, most]): Range => {
      return { offset, length: Math.max(1, Math.min(most, PAGES * PAGE - offset)) }
    })
    const step = fc.record({
      from: fc.nat(PAGES - 1),
      every: fc.integer({ min: 1, max: 5 }),
      count: fc.integer({ min: 1, max: 150 }),
      data: fc.boolean(),
      range,
      taken: fc.constantFrom(3, 40, 1000),
    })
    const page = randomBytes(PAGE, 1)
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 8, size: 'max' }), async steps => {
        for (const { from, every, count, data, range, taken } of steps) {
          for (let at = from, left = count; at < PAGES && left > 0; at += every, left--) {
            if (data) writeSync(fd, page, 0, PAGE, at * PAGE)
            else await native!.punchHole(fd, { offset: at * PAGE, length: PAGE })
            model[at] = data
          }
          let at = range.offset
          // Who stops in the middle goes on from there by a call of its own.
          for (let before = -1; at < endOf(range) && at !== before;) {
            before = at
            let left = taken
            for await (const { offset, length, zero, allocated, hostOffset } of extents({
              offset: at,
              length: endOf(range) - at,
            })) {
              if (offset !== at || length <= 0 || hostOffset !== at || zero === allocated) throw new Error(`at ${at}`)
              for (const end = offset + length; at < end; at = Math.min(alignDown(at, PAGE) + PAGE, end))
                if (model[Math.floor(at / PAGE)] === zero) throw new Error(`byte ${at} is said to be ${zero ? 'a hole' : 'data'}`)
              if (--left === 0) break
            }
          }
          if (at !== endOf(range)) throw new Error(`it ends at ${at}, not at ${endOf(range)}`)
        }
      }),
      { numRuns: 30 },
    )
  },
)

t.test('a thread that hangs, ends or is told to stop costs time, and changes no answer', { skip: nativeMissing }, async t => {
  await using stack = new AsyncDisposableStack()
  const workers: Worker[] = []
  const run = (script: string) => () => workers[workers.push(new Worker(script, { eval: true })) - 1]!
  const say = "const { parentPort } = require('node:worker_threads'); parentPort.postMessage(true);"
  const hangs = run(`${say} parentPort.on('message', () => {})`)
  const dies = run(`${say} parentPort.on('message', () => process.exit(5))`)
  const walk = async ({ fd, extents }: Awaited<ReturnType<typeof fileData>>) => {
    for (let at = 0; at < 64; at++) writeSync(fd, Buffer.alloc(4096, 1), 0, 4096, at * 8192)
    let count = 0
    for await (const { zero } of extents({ offset: 0, length: MiB })) if (zero !== (count++ % 2 === 1)) return -1
    return count
  }
  const hung = await fileData(MiB, stack, { start: hangs })
  let first: Promise<unknown> | undefined
  while (!(first = hung.threads.find({ fd: hung.fd, offset: 0, end: MiB, most: 1 }))) await sleep(5)
  t.equal(await walk(hung), 128)
  t.equal(await Promise.race([first, sleep(1, 'it waits')]), 'it waits')
  for (const worker of workers) await worker.terminate()
  t.equal(await first, undefined)

  const dead = await fileData(MiB, stack, { start: dies })
  const warned = once(process, 'warning')
  while (!(first = dead.threads.find({ fd: dead.fd, offset: 0, end: MiB, most: 1 }))) await sleep(5)
  t.equal(await first, undefined, 'so the pool is asked')
  t.match(await warned, [{ message: /takes longer from now on: the thread for it has ended \(exit code 5\)/ }])
  t.equal(await walk(dead), 128)

  // koffi does not survive that a thread is stopped within it.
  let control: Int32Array | undefined
  const stopped = await fileData(MiB, stack, {
    start: memory => {
      control = new Int32Array(memory)
      return startWorker(memory)
    },
  })
  await stopped.ready()
  const asked = stopped.threads.find({ fd: stopped.fd, offset: 0, end: MiB, most: 4096 })
  stopped.threads.leave()
  t.equal(Atomics.load(control!, INSIDE), 0)
  await asked
  t.equal(await walk(stopped), 128)
})

t.test('without native help a fast zeroing is refused, a slow one writes', async t => {
  await using stack = new AsyncDisposableStack()
  const node = stack.use(await FileNode.open(await scratchFile(randomBytes(3 * MiB, 1), stack), openContext(), undefined))
  await t.rejects(node.zero({ offset: 0, length: MiB }, { fast: true }), NotSupported)
  await node.zero({ offset: 1, length: 2 * MiB })
  t.ok((await readAt(node, 1, 2 * MiB)).equals(Buffer.alloc(2 * MiB)))
})

t.test("raw refuses a window that reaches beyond the file, in QEMU's words", async t => {
  await using stack = new AsyncDisposableStack()
  const context = openContext({ children: { file: await fileNode(Buffer.alloc(1000), stack) } })
  const open = (options: unknown) => raw.open(raw.options.parse(options), context)
  await t.rejects(open({ offset: 1001 }), { message: 'Offset (1001) cannot be greater than size of the containing file (1000)' })
  await t.rejects(open({ offset: 500, size: 501 }), {
    message:
      'The sum of offset (500) and size (501) has to be smaller or equal to the  actual size of the containing file (1000)',
  })
  t.equal((await open({ offset: 1000 })).size, 0)
  t.throws(() => raw.options.parse({ offset: -1 }))
  t.throws(() => raw.options.parse({ offest: 1 }), 'an unknown option')
})

t.test('null-co takes its time when asked to', async t => {
  const node = await nullCo.open(nullCo.options.parse({ size: 100, 'latency-ns': 20e6 }), openContext())
  const start = performance.now()
  await node.write(0, Buffer.alloc(10))
  t.ok(performance.now() - start >= 19, 'milliseconds')
  t.notOk((await node.extents({ offset: 0, length: 1 })[Symbol.asyncIterator]().next()).value.zero)
})
