// Small reads and writes of a file by a thread of its own: always what the pool would have done, whatever becomes of the thread.

import { once } from 'node:events'
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { FileThread, startWorker, type FileThreadOptions } from '../../src/base/file-thread.ts'
import { SMALL } from '../../src/base/request-ring.ts'
import fc from '../helpers/property.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { attempt } from '../helpers/tools.ts'

const SIZE = 5 << 20
function open(stack: DisposableStack, path: string, flags = 'r+', options: FileThreadOptions = {}) {
  const fd = openSync(path, flags)
  stack.defer(() => closeSync(fd))
  let head: Int32Array | undefined
  let online = false
  const start = (ring: SharedArrayBuffer) => {
    head = new Int32Array(ring)
    const worker = (options.start ?? startWorker)(ring)
    online = false
    return worker.on('online', () => (online = true))
  }
  const thread = stack.use(new FileThread({ startAfter: 1, ...options, start }))
  /** `done`: how many the thread has done; `begin`: lets one begin that was made to wait for that. */
  return {
    fd,
    thread,
    online: () => online,
    done: () => Atomics.load(head!, 1),
    begin() {
      Atomics.store(head!, 3, 1)
      Atomics.notify(head!, 3)
    },
  }
}

/** Until the thread does what it is asked for, and not the pool. */
async function started({ fd, thread, online }: ReturnType<typeof open>) {
  await thread.read(fd, 0, Buffer.alloc(1))
  while (!online()) await sleep(10) // nothing else keeps the process alive for it
}

const PLACE = 64 << 10
const PLACES = SIZE / PLACE

/** Of a place of its own each, as of clients that care for the result. */
const turn = fc.uniqueArray(
  fc.record({
    write: fc.boolean(),
    place: fc.nat(PLACES - 1),
    length: fc.oneof(fc.integer({ min: 1, max: 4096 }), fc.constantFrom(4096, SMALL, SMALL + 1)),
    seed: fc.nat(1000),
  }),
  { minLength: 1, maxLength: PLACES, size: 'max', selector: ({ place }) => place },
)

t.test('any requests, also more at a time than the thread has room for, read and write what the file holds', async t => {
  using stack = new DisposableStack()
  const path = `${t.testdir()}/image`
  writeFileSync(path, Buffer.alloc(SIZE))
  const file = open(stack, path, 'r+', { apartMs: 0 }) // also on a machine so busy that the thread seems to wait for a disk
  await started(file)
  const model = Buffer.alloc(SIZE)
  await fc.assert(
    fc.asyncProperty(fc.array(turn, { minLength: 1, maxLength: 5 }), async turns => {
      for (const requests of turns)
        await Promise.all(
          requests.map(async ({ write, place, length, seed }) => {
            const offset = place * PLACE
            if (write) {
              const data = randomBytes(length, seed)
              data.copy(model, offset)
              return await file.thread.write(file.fd, offset, data)
            }
            const into = Buffer.alloc(length)
            const count = await file.thread.read(file.fd, offset, into)
            if (count !== length || !into.equals(model.subarray(offset, offset + length)))
              throw new Error(`${length} bytes at ${offset} are not what was written`)
          }),
        )
      if (!readFileSync(path).equals(model)) throw new Error('the file is not what was written')
    }),
    { numRuns: 30 },
  )
  t.ok(file.done() > 100, `the thread did ${file.done()} of them`)
})

t.test('a read ends where the file does, and what fails says why as Node says it', async t => {
  using stack = new DisposableStack()
  const path = `${t.testdir()}/image`
  writeFileSync(path, 'twelve bytes')
  const file = open(stack, path, 'r')
  await started(file)
  const into = Buffer.alloc(16)
  t.equal(await file.thread.read(file.fd, 6, into), 6)
  t.equal(into.toString('utf8', 0, 6), ' bytes')
  t.equal(await file.thread.read(file.fd, 12, into), 0)
  await t.rejects(file.thread.write(file.fd, 0, into), { code: 'EBADF', syscall: 'write' })
  await t.rejects(file.thread.read(999, 0, into), { code: 'EBADF', syscall: 'read' })
})

/** Runs what is said of the ring before it does, or instead of it, what the thread does. */
const workerThat = (does: string) => (ring: SharedArrayBuffer) =>
  new Worker(`const { workerData } = require('node:worker_threads'); const head = new Int32Array(workerData); ${does}`, {
    eval: true,
    workerData: ring,
  })

t.test('what a thread that dies has not done is done, and all that follows', async t => {
  using stack = new DisposableStack()
  const path = `${t.testdir()}/image`
  writeFileSync(path, Buffer.alloc(SIZE))
  let starts = 0
  const dies = workerThat(`Atomics.wait(head, 0, 0); throw new Error('no memory left')`)
  const file = open(stack, path, 'r+', { start: ring => (starts++, dies(ring)) })
  await started(file)
  const warned = once(process, 'warning')
  const data = randomBytes(PLACES * 4096, 1)
  const pieces = Array.from({ length: PLACES }, (_, at) => data.subarray(at * 4096, (at + 1) * 4096))
  await Promise.all(pieces.map((piece, at) => file.thread.write(file.fd, at * 4096, piece)))
  t.match((await warned)[0], { message: /slower from now on: its thread has ended \(no memory left\)/ })
  await Promise.all(pieces.map((piece, at) => file.thread.write(file.fd, data.length + at * 4096, piece)))
  t.ok(
    readFileSync(path)
      .subarray(0, 2 * data.length)
      .equals(Buffer.concat([data, data])),
  )
  t.equal(starts, 1)
})

t.test('nobody who comes later waits for a request that the disk keeps', async t => {
  using stack = new DisposableStack()
  const path = `${t.testdir()}/image`
  writeFileSync(path, 'kept')
  const worker = new URL('../../src/base/file-thread-worker.js', import.meta.url).href
  const late = workerThat(`Atomics.wait(head, 0, 0); Atomics.wait(head, 3, 0); import('${worker}')`)
  const file = open(stack, path, 'r', { start: late })
  await started(file)
  const into = Buffer.alloc(4)
  const first = file.thread.read(file.fd, 0, into)
  await sleep(50)
  for (let times = 0; times < 100; times++) t.equal(await file.thread.read(file.fd, 1, Buffer.alloc(3)), 3)
  t.equal(into.toString(), '\0\0\0\0', 'it is still kept')
  file.begin()
  t.equal(await first, 4)
  t.equal(into.toString(), 'kept')
})

t.test('a file that nobody uses for a while has no thread any more, and gets one again', async t => {
  using stack = new DisposableStack()
  const path = `${t.testdir()}/image`
  writeFileSync(path, 'content')
  let exits = 0
  let starts = 0
  const file = open(stack, path, 'r', {
    idleMs: 100,
    start(ring) {
      starts++
      return startWorker(ring).on('exit', () => exits++)
    },
  })
  await started(file)
  while (exits < 1) await sleep(20)
  await started(file)
  t.equal(starts, 2)
  file.thread[Symbol.dispose]()
  while (exits < 2) await sleep(20)
  t.equal(await file.thread.read(file.fd, 0, Buffer.alloc(7)), 7, 'and the pool goes on')
  t.equal(starts, 2)
})

t.test('a process stays until what it has asked for is done, and no longer', async t => {
  const path = `${t.testdir()}/image`
  writeFileSync(path, Buffer.alloc(1 << 16))
  const module = new URL('../../src/base/file-thread.js', import.meta.url).href
  const script = `
    import fs from 'node:fs'
    import { FileThread } from '${module}'
    const thread = new FileThread({ startAfter: 1 })
    const fd = fs.openSync(${JSON.stringify(path)})
    const read = async () => { if ((await thread.read(fd, 0, Buffer.alloc(4096))) !== 4096) throw new Error('too short') }
    await read()
    await new Promise(resolve => setTimeout(resolve, 300))
    for (let times = 0; times < 100; times++) await Promise.all([read(), read()])
    console.log('done')`
  const { stdout } = await attempt(process.execPath, ['--input-type=module', '-e', script])
  t.equal(stdout.trim(), 'done')
})
