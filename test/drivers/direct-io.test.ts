// Files around the page cache (cache.direct): what is read and written is the same as through it, and the cache is left alone.

import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { native } from '../../src/base/native.ts'
import { readSome, writeSome } from '../../src/base/positional-io.ts'
import { sharedMemory } from '../../src/base/shared-memory.ts'
import type { DirectCalls } from '../../src/drivers/direct-io.ts'
import { file, FileNode } from '../../src/drivers/file.ts'
import { blockNodeSuite, readAt } from '../helpers/block-node-suite.ts'
import { scratchFolder } from '../helpers/control.ts'
import { directMissing } from '../helpers/direct.ts'
import { openContext, scratchFile } from '../helpers/open-context.ts'
import fc from '../helpers/property.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { attempt, missing, run } from '../helpers/tools.ts'

const skip = directMissing
const PAGE = 4096
const MiB = 1 << 20
const cache = { direct: true, noFlush: false }
const direct = (more = {}) => openContext({ cache, ...more })

if (!directMissing) {
  const capabilities = { runs: 10 }
  const make = async (content: Buffer, stack: AsyncDisposableStack) =>
    file.open({ filename: await scratchFile(content, stack), aio: 'native' }, direct())
  blockNodeSuite(t, 'file with cache.direct', make, capabilities)
  blockNodeSuite(
    t,
    'file with cache.direct without native help',
    async (content, stack) => FileNode.open(await scratchFile(content, stack), direct(), undefined),
    capabilities,
  )
}

/** Where requests that touch each other, but do not overlap, begin and end: with `toPage` at the next page behind the length. */
const tile = fc.record({
  length: fc.oneof(
    fc.integer({ min: 1, max: 3 * PAGE }),
    fc.integer({ min: 1, max: 150 }).map(pages => pages * PAGE),
  ),
  toPage: fc.boolean(),
  kind: fc.constantFrom('write', 'write', 'write', 'read', 'read', 'zero', 'discard'),
  seed: fc.nat(),
})

t.test(
  'requests side by side, some of whole pages and some not, at once, are what other programs read',
  { skip: skip || missing('dd') },
  async t => {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    const SIZE = 1.5 * MiB
    const histories = fc.array(fc.array(tile, { minLength: 1, maxLength: 40 }), { minLength: 1, maxLength: 3 })
    await fc.assert(
      fc.asyncProperty(histories, async batches => {
        const filename = join(folder, 'image')
        const model = randomBytes(SIZE, 5)
        writeFileSync(filename, model)
        await using node = await FileNode.open(filename, direct(), native)
        for (const batch of batches) {
          const requests: Promise<void>[] = []
          let end = 0
          for (const { length, toPage, kind, seed } of batch) {
            const offset = end
            end = Math.min(SIZE, toPage ? Math.ceil((offset + length) / PAGE) * PAGE : offset + length)
            if (end === offset) break
            requests.push(take(node, model, kind, offset, end - offset, seed))
          }
          await Promise.all(requests)
          if (!(await readAt(node, 0, SIZE)).equals(model)) throw new Error('around the page cache it differs')
          if (!(await readAt(node, 1, SIZE - 1)).equals(model.subarray(1))) throw new Error('through the page cache it differs')
        }
        await node.flush()
        if (!readFileSync(filename).equals(model)) throw new Error('what others read differs')
        await run('dd', [`if=${filename}`, `of=${join(folder, 'copy')}`, 'iflag=direct', 'bs=1M', 'status=none'])
        if (!readFileSync(join(folder, 'copy')).equals(model)) throw new Error('what dd reads around the page cache differs')
      }),
      { numRuns: 12 },
    )
    t.pass('the same')
  },
)

/** Begins with a page. */
const arena = sharedMemory(2 * MiB)

async function take(node: FileNode, model: Buffer, kind: string, offset: number, length: number, seed: number) {
  const modelled = model.subarray(offset, offset + length)
  // Requests at once are apart from each other on the disk, so in the arena too; what begins with a page there does so here.
  const memory = seed % 2 === 0 ? arena.subarray(offset, offset + length) : Buffer.alloc(length)
  switch (kind) {
    case 'read': {
      const before = Buffer.from(modelled)
      await node.read(offset, memory)
      if (!memory.equals(before)) throw new Error(`${offset}+${length} differs`)
      return
    }
    case 'write': {
      const data = memory
      randomBytes(length, seed).copy(data)
      await node.write(offset, data, { fua: seed % 16 === 0 })
      modelled.set(data)
      return
    }
    case 'zero':
      await node.zero({ offset, length }, { unmap: seed % 2 === 0 })
      modelled.fill(0)
      return
    default:
      await node.discard({ offset, length })
      modelled.set(await readAt(node, offset, length)) // anything, but it stays that
  }
}

const cachedBytes = async (path: string) =>
  Number((await run('fincore', ['--bytes', '--noheadings', '--output', 'RES', path])).trim())

t.test('what is written and read around the page cache is not in it', { skip: skip || missing('fincore', 'dd') }, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const [image, theirs] = ['image', 'theirs'].map(name => join(folder, name))
  writeFileSync(image!, '')
  truncateSync(image!, 4 * MiB)
  await run('dd', ['if=/dev/zero', `of=${theirs}`, 'oflag=direct', 'bs=1M', 'count=4', 'status=none'])
  if ((await cachedBytes(theirs!)) > 0) return void t.pass('a file system that keeps all in the page cache anyway')
  const content = randomBytes(4 * MiB, 1)
  await using node = await FileNode.open(image!, direct(), native)
  for (let at = 0; at < content.length; at += 2 * MiB) await node.write(at, content.subarray(at, at + 2 * MiB))
  for (const length of [PAGE, 64 << 10, 4 * MiB]) {
    t.ok((await readAt(node, 0, length)).equals(content.subarray(0, length)))
    const reads = [0, PAGE].map(offset => ({ offset, bytes: Buffer.alloc(PAGE), ready: false }))
    node.readReady(reads)
    t.same(
      reads.map(({ ready }) => ready),
      [false, false],
      'nothing is answered from the page cache',
    )
  }
  t.equal(await cachedBytes(image!), 0)
  t.equal(node.lend(), undefined, 'nor is the file lent to who would go through it')
  t.ok((await readAt(node, 1, 100)).equals(content.subarray(1, 101)))
  await node.write(0, content)
  t.equal(await cachedBytes(image!), 0, 'what was read of parts of pages is taken out when they are written')
})

t.test('it is switched on and off while it is read', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const content = randomBytes(2 * MiB, 1)
  const filename = await scratchFile(content, stack)
  await using node = await FileNode.open(filename, openContext(), native)
  for (const context of [direct(), direct({ readOnly: true }), openContext(), direct()]) {
    const reads = [0, 1, PAGE].map(offset => readAt(node, offset, MiB))
    const reopened = await node.reopen(context)
    reopened.commit()
    reopened.undo()
    reopened.commit()
    for (const [index, bytes] of (await Promise.all(reads)).entries())
      t.ok(bytes.equals(content.subarray([0, 1, PAGE][index], [0, 1, PAGE][index]! + MiB)))
    await reopened.closeOld()
    t.equal(node.lend() === undefined, context.cache.direct)
    t.ok((await readAt(node, 0, content.length)).equals(content))
  }
  const unused = await node.reopen(openContext())
  await unused.closeNew()
  content.set(randomBytes(PAGE, 2), PAGE)
  await node.write(PAGE, content.subarray(PAGE, 2 * PAGE))
  t.ok(readFileSync(filename).equals(content))
})

t.test('a file that somebody else cuts short fails its reads and does not invent bytes', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const filename = await scratchFile(randomBytes(MiB, 1), stack)
  await using node = await FileNode.open(filename, direct(), native)
  for (const length of [PAGE + 1000, 2 * PAGE]) {
    truncateSync(filename, length)
    await t.rejects(readAt(node, PAGE, 16 * PAGE), {
      name: 'IoError',
      message: `${filename}: ends at ${length}, and not at ${MiB}: something else has cut it short`,
    })
  }
})

t.test("a file system that cannot is refused in QEMU's words", async t => {
  const filename = '/proc/version'
  const message = `Could not open '${filename}': filesystem does not support O_DIRECT`
  await t.rejects(file.open({ filename }, direct({ readOnly: true })), { name: 'NotSupported', message })
  await using node = await FileNode.open(filename, openContext({ readOnly: true }), native, { locks: false })
  await t.rejects(node.reopen(direct({ readOnly: true })), { name: 'NotSupported', message })
  const theirs = missing('qemu-storage-daemon')
    ? undefined
    : await attempt('qemu-storage-daemon', ['--blockdev', `file,node-name=f,filename=${filename},cache.direct=on,read-only=on`])
  if (theirs) t.ok(theirs.stderr.trim().endsWith(message), theirs.stderr)
  await t.rejects(file.open({ filename, aio: 'native' }, openContext({ readOnly: true })), {
    message: 'aio=native was specified, but it requires cache.direct=on, which was not specified.',
  })
})

/** A node over `MiB` bytes whose direct calls go through `change` first. */
async function changed(stack: AsyncDisposableStack, change: (what: 'read' | 'write', offset: number, bytes: Buffer) => Buffer) {
  const asked: string[] = []
  const see = (what: 'read' | 'write', offset: number, bytes: Buffer) => {
    asked.push(`${what} ${offset}+${bytes.length}`)
    return change(what, offset, bytes)
  }
  const directCalls: DirectCalls = {
    readSome: async (fd, into, from, offset, countedAs) =>
      readSome(fd, see('read', offset, into.subarray(from)), 0, offset, countedAs),
    writeSome: async (fd, data, from, offset, countedAs) =>
      writeSome(fd, see('write', offset, data.subarray(from)), 0, offset, countedAs),
  }
  const filename = await scratchFile(randomBytes(MiB, 1), stack)
  return { node: stack.use(await FileNode.open(filename, direct(), native, { directCalls })), asked, filename }
}

const fails = (code: string) => Object.assign(new Error(`${code}: made up`), { code })

t.test('a device with larger blocks gets what it takes, and the page cache the rest', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const content = randomBytes(MiB, 1)
  for (const [block, tried] of [
    [2 * PAGE, ['read 0+4096', 'read 0+65536', 'write 8192+16384']],
    [16 * PAGE, ['read 0+4096', 'read 8192+8192', 'read 0+65536']],
    [128 * PAGE, ['read 0+4096', 'read 8192+8192', 'read 0+65536']],
  ] as const) {
    const { node, asked, filename } = await changed(stack, (_what, offset, bytes) => {
      if (offset % block > 0 || bytes.length % block > 0) throw fails('EINVAL')
      return bytes
    })
    const model = Buffer.from(content)
    for (const [offset, length] of [
      [0, PAGE],
      [PAGE, PAGE],
      [2 * PAGE, 2 * PAGE],
      [0, 16 * PAGE],
      [16 * PAGE, 16 * PAGE],
    ] as const)
      t.ok((await readAt(node, offset, length)).equals(model.subarray(offset, offset + length)))
    for (const offset of [0, PAGE, 2 * PAGE]) {
      const data = randomBytes(4 * PAGE, offset + 1)
      model.set(data, offset)
      await node.write(offset, data)
    }
    t.ok(readFileSync(filename).equals(model))
    for (const one of tried) t.ok(asked.includes(one), `${block}: ${one} of ${asked.join(', ')}`)
    t.notOk(asked.includes('read 4096+4096'), 'what was refused once is not tried again')
    t.equal(asked.includes('read 65536+65536'), block <= 16 * PAGE, 'with blocks larger than that nothing is tried any more')
  }
})

t.test('what is done in part goes on through the page cache, and a failure is told', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const content = randomBytes(MiB, 1)
  let code: string | undefined
  const { node, filename } = await changed(stack, (what, _offset, bytes) => {
    if (code) throw fails(code)
    return what === 'write' ? bytes.subarray(0, Math.ceil(bytes.length / PAGE / 2) * PAGE) : bytes
  })
  for (const [offset, length] of [
    [0, 8 * PAGE],
    [16 * PAGE, PAGE],
    [32 * PAGE, 200 * PAGE],
  ] as const) {
    const data = randomBytes(length, offset + 3)
    content.set(data, offset)
    await node.write(offset, data)
    t.ok((await readAt(node, offset, length)).equals(data))
  }
  t.ok(readFileSync(filename).equals(content))
  for (const [failure, name] of [
    ['ENOSPC', 'NoSpace'],
    ['EIO', 'IoError'],
  ] as const) {
    code = failure
    await t.rejects(node.write(0, Buffer.alloc(PAGE)), { name })
    await t.rejects(readAt(node, 0, PAGE), { name })
  }
  code = undefined
  t.ok((await readAt(node, 0, MiB)).equals(content), 'and the next ones go well')
})
