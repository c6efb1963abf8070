// Headers: what we refuse and what we say then is what qemu-img says; what we do not know is kept.

import { readFileSync, writeFileSync } from 'node:fs'
import t from 'tap'
import { readAt } from '../../helpers/block-node-suite.ts'
import { openImage } from '../../helpers/image-chain.ts'
import { missing, qemuCheck, qemuImg, qemuIo, run, scratchFolder } from '../../helpers/qemu.ts'
import { MemoryNode } from '../../helpers/memory-node.ts'
import { newImage, openQcow2 } from '../../helpers/qcow2-image.ts'
import { changeBackingFile } from '../../../src/drivers/qcow2/change-backing-file.ts'
import { decodeHeader } from '../../../src/drivers/qcow2/header.ts'
import type { Qcow2Node } from '../../../src/drivers/qcow2/qcow2-node.ts'

const skip = missing('qemu-img', 'qemu-io')
const u32 = (value: number) => Buffer.from([value >>> 24, value >>> 16, value >>> 8, value])
const u64 = (value: bigint) => {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(value)
  return bytes
}

/** A name for incompatible feature 5, in a table of one entry. */
const featureName = Buffer.concat([
  u32(0x6803f857),
  u32(48),
  Buffer.from([0, 5]),
  Buffer.from('time travel'.padEnd(46, '\0')),
  Buffer.alloc(8),
])

const damages: [what: string, ...patches: (readonly [offset: number, bytes: Buffer])[]][] = [
  ['version 4', [4, u32(4)]],
  ['version 1', [4, u32(1)]],
  ['tiny clusters', [20, u32(8)]],
  ['huge clusters', [20, u32(22)]],
  ['a short header', [100, u32(96)]],
  ['a header longer than a cluster', [100, u32(65544)]],
  ['a backing file behind the first cluster', [8, u64(65537n)]],
  ['a backing file name that is too long', [8, u64(512n)], [16, u32(1024)]],
  ['an unknown incompatible feature', [72, u64(1n << 5n)]],
  ['two, one with a name', [72, u64((1n << 5n) | (1n << 63n))], [112, featureName]],
  ['a compression type without its bit', [104, Buffer.from([1])]],
  ['an unknown compression type', [104, Buffer.from([2])]],
  ['a compression bit without its type', [72, u64(8n)]],
  ['refcounts of 128 bits', [96, u32(7)]],
  ['an unknown encryption', [32, u32(3)]],
  ['no refcount table', [56, u32(0)]],
  ['a refcount table that is too large', [56, u32(0x10000)]],
  ['a refcount table off its cluster', [48, u64(0x10001n)]],
  ['too many snapshots', [60, u32(65537)], [64, u64(0x50000n)]],
  ['a snapshot table off its cluster', [60, u32(1)], [64, u64(3n)]],
  ['an L1 table that is too small', [36, u32(0)]],
  ['an L1 table that is too large', [36, u32(0x400001)]],
  ['an L1 table off its cluster', [40, u64(0x30001n)]],
  ['a disk that is too large', [24, u64(1n << 50n)]],
  ['an extension that is too long', [112, Buffer.concat([u32(0x12345678), u32(0x7fff_ffff)])]],
]

t.test('a header that qemu-img refuses we refuse with its words', { skip }, async t => {
  await using scratch = new AsyncDisposableStack()
  const folder = await scratchFolder(scratch)
  const good = `${folder}/good.qcow2`
  await qemuImg('create', '-q', '-f', 'qcow2', good, '10M')
  for (const [index, [what, ...patches]] of damages.entries()) {
    const path = `${folder}/${index}.qcow2`
    const bytes = readFileSync(good)
    for (const [offset, patch] of patches) bytes.set(patch, offset)
    writeFileSync(path, bytes)
    const { stderr } = await run('qemu-img', ['info', '-f', 'qcow2', path])
    const theirs = /Could not open '[^']*': (.*)/.exec(stderr)?.[1]
    t.ok(theirs, `${what}: ${stderr}`)
    await using stack = new AsyncDisposableStack()
    await t.rejects(openImage(path, stack, { readOnly: true }), { message: theirs ?? '' }, what)
  }
})

t.test(
  'subclusters of less than 512 bytes, encryption and a corrupt image that is to be written are refused',
  { skip },
  async t => {
    await using scratch = new AsyncDisposableStack()
    const path = `${await scratchFolder(scratch)}/image.qcow2`
    const refused = async (create: string, patches: (readonly [number, Buffer])[], message: RegExp, readOnly = true) => {
      await qemuImg('create', '-q', '-f', 'qcow2', '-o', create, path, '1M')
      const bytes = readFileSync(path)
      for (const [offset, patch] of patches) bytes.set(patch, offset)
      writeFileSync(path, bytes)
      await using stack = new AsyncDisposableStack()
      await t.rejects(openImage(path, stack, { readOnly }), { message })
    }
    await refused('cluster_size=4k', [[72, u64(16n)]], /^Unsupported subcluster size: 128$/)
    await refused('compat=1.1', [[32, u32(1)]], /encrypted \(AES\)/)
    await refused('compat=1.1', [[72, u64(2n)]], /^qcow2: Image is corrupt; cannot be opened read\/write$/, false)
    await refused('compat=1.1', [[0, Buffer.from('raw!')]], /^Image is not in qcow2 format$/)
    await refused('compat=1.1', [[72, u64(4n)]], /^'data-file' is required for this image$/)
  },
)

t.test(
  'unknown autoclear bits go when the image is opened for writing; unknown extensions, fields and compatible bits stay',
  async t => {
    const file = new MemoryNode(Buffer.alloc(0))
    await (await newImage(file, { size: 1 << 20 }))[Symbol.asyncDispose]()
    file.bytes.set(u64(1n << 40n), 80)
    file.bytes.set(u64(1n << 41n), 88)
    const header = decodeHeader(file.bytes.subarray(0, 65536))
    const longer = Buffer.alloc(65536)
    longer.set(file.bytes.subarray(0, 112))
    longer.set(u32(128), 100)
    longer.set(Buffer.from('new field, kept!'), 112)
    longer.set(Buffer.concat([u32(0xabcd0123), u32(5), Buffer.from('hello'), Buffer.alloc(3)]), 128)
    file.bytes.set(longer)
    t.equal(header.autoclear, 1n << 41n)
    {
      await using node = await openQcow2(file, { readOnly: true })
      t.equal(node.image.header.autoclear, 1n << 41n, 'reading changes nothing')
    }
    await using node = await openQcow2(file)
    await changeBackingFile(node.image, 'base.qcow2', 'qcow2')
    const after = decodeHeader(file.bytes.subarray(0, 65536))
    t.equal(after.autoclear, 0n)
    t.equal(after.compatible, 1n << 40n)
    t.equal(after.moreFields.toString(), 'new field, kept!')
    t.same(after.moreExtensions, [{ type: 0xabcd0123, data: Buffer.from('hello') }])
    t.equal(after.backingFile, 'base.qcow2')
    t.equal(after.backingFormat, 'qcow2')
  },
)

t.test('qemu-img sees the backing files that we write, and we those that it writes', { skip }, async t => {
  await using scratch = new AsyncDisposableStack()
  const folder = await scratchFolder(scratch)
  for (const name of ['a', 'b']) await qemuImg('create', '-q', '-f', 'qcow2', `${folder}/${name}.qcow2`, '1M')
  await qemuIo(`${folder}/a.qcow2`, 'write -P 1 0 1M')
  await qemuIo(`${folder}/b.qcow2`, 'write -P 2 0 1M')
  const top = `${folder}/top.qcow2`
  for (const cluster of ['512', '64k']) {
    await qemuImg('create', '-q', '-f', 'qcow2', '-o', `cluster_size=${cluster}`, '-b', 'a.qcow2', '-F', 'qcow2', top)
    {
      await using stack = new AsyncDisposableStack()
      const node = await openImage<Qcow2Node>(top, stack)
      t.equal((await readAt(node, 5000, 1))[0], 1)
      await changeBackingFile(node.image, 'b.qcow2', 'qcow2')
    }
    const info = JSON.parse(await qemuImg('info', '--output=json', top))
    t.equal(info['backing-filename'], 'b.qcow2')
    t.equal(info['backing-filename-format'], 'qcow2')
    t.equal(await qemuCheck(top), '')
    {
      await using stack = new AsyncDisposableStack()
      const node = await openImage<Qcow2Node>(top, stack)
      t.equal((await readAt(node, 5000, 1))[0], 2)
      await changeBackingFile(node.image, undefined)
    }
    t.notMatch(await qemuImg('info', top), 'backing file')
    await qemuImg(
      'rebase',
      '-u',
      '-f',
      'qcow2',
      '-b',
      'json:{"driver":"qcow2","file.driver":"file","file.filename":"' + folder + '/a.qcow2"}',
      '-F',
      'qcow2',
      top,
    )
    await using stack = new AsyncDisposableStack()
    t.equal((await readAt(await openImage(top, stack, { readOnly: true }), 5000, 1))[0], 1, 'json:')
  }
})

t.test('a chain that leads back to itself is refused', { skip }, async t => {
  await using scratch = new AsyncDisposableStack()
  const folder = await scratchFolder(scratch)
  await qemuImg('create', '-q', '-f', 'qcow2', `${folder}/a`, '1M')
  await qemuImg('create', '-q', '-f', 'qcow2', '-b', 'a', '-F', 'qcow2', `${folder}/b`)
  await qemuImg('rebase', '-u', '-f', 'qcow2', '-b', 'b', '-F', 'qcow2', `${folder}/a`)
  await using stack = new AsyncDisposableStack()
  await t.rejects(openImage(`${folder}/b`, stack, { readOnly: true }), { message: /creates an infinite loop/ })
})
