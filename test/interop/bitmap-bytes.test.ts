// Stored dirty bitmaps judged by QEMU: their bytes, and the states that only a stored one can be in.

import { open, type FileHandle } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { messageOf } from '../../src/base/errors.ts'
import { BitmapSet } from '../../src/bitmaps/bitmap-set.ts'
import { DirtyBitmap } from '../../src/bitmaps/dirty-bitmap.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { missing, qemuImg, qemuIo, scratchFolder } from '../helpers/qemu.ts'
import { qsdMissing, startQsd } from '../helpers/qemu-storage-daemon.ts'
import { generator } from '../helpers/random-bytes.ts'

const skip = qsdMissing || missing('qemu-img', 'qemu-io')
const CLUSTER = 4096
const GRANULARITY = 512
/** Bytes; the bitmap is four clusters and a byte. */
const SIZE = (64 << 20) + 512

const BITMAPS_EXTENSION = 0x23852875
const IN_USE = 1

/** An image with one bitmap, 'b', that is dirty where QEMU has written. */
async function imageWithBitmap(stack: AsyncDisposableStack, writes: readonly string[]) {
  const image = join(await scratchFolder(stack), 'image.qcow2')
  await qemuImg('create', '-q', '-f', 'qcow2', '-o', `cluster_size=${CLUSTER}`, image, String(SIZE))
  await qemuImg('bitmap', '--add', '-g', String(GRANULARITY), image, 'b')
  await qemuIo(image, ...writes)
  return image
}

async function bytesOf(file: FileHandle, at: number, length: number) {
  const bytes = Buffer.alloc(length)
  await file.read(bytes, 0, length, at)
  return bytes
}

/** Where the directory's first entry is: its table's offset (8 bytes), its clusters (4), its flags (4). */
async function directoryEntry(file: FileHandle): Promise<number> {
  const header = await bytesOf(file, 0, CLUSTER)
  for (let at = header.readUInt32BE(100); ; at += 8 + Math.ceil(header.readUInt32BE(at + 4) / 8) * 8) {
    if (header.readUInt32BE(at) === BITMAPS_EXTENSION) return Number(header.readBigUInt64BE(at + 24))
    if (header.readUInt32BE(at) === 0) throw new Error('there are no bitmaps')
  }
}

/** Where each part of the bitmap is, a cluster long but for the last; 0 where it is all zeroes. */
async function partsOf(file: FileHandle): Promise<number[]> {
  const entry = await bytesOf(file, await directoryEntry(file), 16)
  const table = await bytesOf(file, Number(entry.readBigUInt64BE(0)), entry.readUInt32BE(8) * 8)
  return Array.from({ length: table.length / 8 }, (_, index) => Number(table.readBigUInt64BE(index * 8) & 0x00fffffffffffe00n))
}

/** QEMU, with the image open as 'n' and an empty disk of the same size as 'o'. */
async function qemuWith(stack: AsyncDisposableStack, image: string, { readOnly = false } = {}) {
  const client = stack.use(await QmpClient.connect(await startQsd(stack)))
  const file = { driver: 'file', filename: image }
  await client.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'n', file, 'read-only': readOnly })
  await client.execute('blockdev-add', { driver: 'null-co', 'node-name': 'o', size: SIZE })
  return client
}

async function sha256(client: QmpClient) {
  const answer = await client.execute('x-debug-block-dirty-bitmap-sha256', { node: 'n', name: 'b' })
  return (answer as { sha256: string }).sha256
}

t.test('we read the bytes of a bitmap that QEMU has stored, and QEMU reads ours', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const writes = ['write 512 512', 'write 7k 1M', 'write 40M 66048', 'write 60000k 4k', `write ${SIZE - 512} 512`]
  const image = await imageWithBitmap(stack, writes)
  const file = await open(image, 'r+')
  stack.defer(() => file.close())
  const parts = await partsOf(file)
  const bitmap = new DirtyBitmap({ size: SIZE, granularity: GRANULARITY })
  t.equal(parts.length, Math.ceil(bitmap.byteLength / CLUSTER))
  t.ok(parts.includes(0) && parts.filter(part => part !== 0).length >= 3, 'some parts are stored and some are not')
  const lengthOf = (index: number) => Math.min(CLUSTER, bitmap.byteLength - index * CLUSTER)
  for (const [index, part] of parts.entries()) {
    if (part !== 0) bitmap.addBytes(index * CLUSTER, await bytesOf(file, part, lengthOf(index)))
  }
  {
    await using inner = new AsyncDisposableStack()
    t.equal(bitmap.sha256(), await sha256(await qemuWith(inner, image, { readOnly: true })))
  }

  const next = generator(7)
  for (const [index, part] of parts.entries()) {
    if (part === 0) continue
    for (let count = 0; count < 50; count++) {
      const granule = index * CLUSTER * 8 + (next() % (lengthOf(index) * 8))
      bitmap.mark(granule * GRANULARITY, GRANULARITY * (1 + (next() % 3)))
    }
  }
  for (const [index, part] of parts.entries()) {
    if (part !== 0) await file.write(bitmap.readBytes(index * CLUSTER, lengthOf(index)), 0, lengthOf(index), part)
    else bitmap.reset(index * CLUSTER * 8 * GRANULARITY, CLUSTER * 8 * GRANULARITY)
  }
  t.equal(await sha256(await qemuWith(stack, image)), bitmap.sha256())
})

for (const state of ['readOnly', 'inconsistent'] as const) {
  t.test(`a stored bitmap that is ${state} refuses what it refuses in QEMU, in the same words`, { skip }, async t => {
    await using stack = new AsyncDisposableStack()
    const image = await imageWithBitmap(stack, [])
    if (state === 'inconsistent') {
      await using file = await open(image, 'r+')
      const flags = Buffer.from([0, 0, 0, IN_USE])
      await file.write(flags, 0, 4, (await directoryEntry(file)) + 12)
    }
    const qemu = await qemuWith(stack, image, { readOnly: state === 'readOnly' })
    await qemu.execute('block-dirty-bitmap-add', { node: 'o', name: 't' })

    const set = new BitmapSet({ nodeName: 'n', size: SIZE })
    const bitmap = set.restore({ name: 'b', granularity: GRANULARITY, persistent: true, [state]: true })
    const other = new BitmapSet({ nodeName: 'o', size: SIZE }).add({ name: 't' })
    t.equal(set.hasReadOnly, state === 'readOnly')

    const b = { node: 'n', name: 'b' }
    const cases: [string, object, () => unknown][] = [
      ['block-dirty-bitmap-clear', b, () => set.clear(bitmap)],
      ['block-dirty-bitmap-merge', { node: 'o', target: 't', bitmaps: [b] }, () => set.merge(other, [bitmap])],
      [
        'block-dirty-bitmap-merge',
        { ...b, name: undefined, target: 'b', bitmaps: [{ node: 'o', name: 't' }] },
        () => set.merge(bitmap, [other]),
      ],
      ['block-dirty-bitmap-disable', b, () => set.disable(bitmap)],
      ['block-dirty-bitmap-enable', b, () => set.enable(bitmap)],
      ['block-dirty-bitmap-add', b, () => set.add({ name: 'b' })],
      ['block-dirty-bitmap-remove', b, () => set.remove(bitmap)],
    ]
    for (const [command, args, ours] of cases) {
      const theirs = await qemu.execute(command, args).then(() => 'done', messageOf)
      t.equal(await Promise.try(ours).then(() => 'done', messageOf), theirs, `${command}: ${theirs}`)
      if (command === 'block-dirty-bitmap-remove') continue
      const nodes = (await qemu.execute('query-named-block-nodes', { flat: true })) as {
        'node-name': string
        'dirty-bitmaps': unknown
      }[]
      t.same(
        [...set].map(bitmap => bitmap.info()),
        nodes.find(node => node['node-name'] === 'n')!['dirty-bitmaps'],
      )
    }
    t.equal(set.find('b') === undefined, state === 'inconsistent', 'only what is inconsistent can be removed')
  })
}
