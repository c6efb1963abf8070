// Stored bitmaps: QEMU reads ours and we read QEMU's, bit for bit; what is damaged or unfinished is told, and stops nothing else.

import { readFileSync, writeFileSync } from 'node:fs'
import fc from '../../helpers/property.ts'
import t from 'tap'
import { InvalidParameter, NoSpace, NotFound, NotSupported } from '../../../src/base/errors.ts'
import {
  listBitmaps,
  markInUse,
  readBitmap,
  removeBitmap,
  storeBitmaps,
  type BitmapContent,
} from '../../../src/drivers/qcow2/bitmaps.ts'
import { checkImage } from '../../../src/drivers/qcow2/check/check.ts'
import { CorruptImage } from '../../../src/drivers/qcow2/corrupt-image.ts'
import type { Image } from '../../../src/drivers/qcow2/image.ts'
import type { Qcow2Node } from '../../../src/drivers/qcow2/qcow2-node.ts'
import { openImage } from '../../helpers/image-chain.ts'
import { MemoryNode } from '../../helpers/memory-node.ts'
import { newImage, openQcow2 } from '../../helpers/qcow2-image.ts'
import { missing, qemuCheck, qemuImg, qemuIo, run, scratchFolder } from '../../helpers/qemu.ts'
import { randomBytes } from '../../helpers/random-bytes.ts'

const skip = missing('qemu-img', 'qemu-io')
const MiB = 1 << 20

/** A bitmap whose bytes are these. */
const content = (name: string, bytes: Buffer, more: Partial<BitmapContent> = {}): BitmapContent => ({
  name,
  granularityBits: 16,
  enabled: true,
  read: (offset, length) => bytes.subarray(offset, offset + length),
  ...more,
})

async function bytesOf(image: Image, name: string) {
  const parts: Buffer[] = []
  for await (const { length, data, ones } of readBitmap(image, name)) parts.push(data ?? Buffer.alloc(length, ones ? 0xff : 0))
  return Buffer.concat(parts)
}

t.test('we read the bits that QEMU records', { skip }, async t => {
  await using scratch = new AsyncDisposableStack()
  const path = `${await scratchFolder(scratch)}/image.qcow2`
  await qemuImg('create', '-q', '-f', 'qcow2', path, '100M')
  await qemuImg('bitmap', '--add', '-g', '64k', path, 'coarse')
  await qemuImg('bitmap', '--add', '-g', '512', path, 'fine')
  await qemuImg('bitmap', '--add', '--disable', path, 'off')
  await qemuIo(path, 'write 0 1', 'write 10M 200k', 'write 104857088 512')
  await using stack = new AsyncDisposableStack()
  const { image } = await openImage<Qcow2Node>(path, stack, { readOnly: true })
  const { bitmaps, problem } = await listBitmaps(image)
  t.equal(problem, undefined)
  t.same(
    bitmaps.map(({ name, granularityBits, enabled, inUse, inconsistent }) => [
      name,
      granularityBits,
      enabled,
      inUse,
      inconsistent,
    ]),
    [
      ['coarse', 16, true, false, undefined],
      ['fine', 9, true, false, undefined],
      ['off', 16, false, false, undefined],
    ],
  )
  t.same(bitsOf(await bytesOf(image, 'coarse')), [0, 160, 161, 162, 163, 1599])
  t.same(bitsOf(await bytesOf(image, 'fine')), [0, ...Array.from({ length: 400 }, (_, index) => 20480 + index), 204799])
  t.same(bitsOf(await bytesOf(image, 'off')), [])
  await t.rejects(bytesOf(image, 'none'), NotFound)
})

const bitsOf = (bytes: Buffer) =>
  [...bytes].flatMap((byte, index) => [0, 1, 2, 3, 4, 5, 6, 7].filter(bit => byte & (1 << bit)).map(bit => index * 8 + bit))

t.test('QEMU reads the bitmaps that we store, and merges, enables and removes them', { skip }, async t => {
  await using scratch = new AsyncDisposableStack()
  const folder = await scratchFolder(scratch)
  const path = `${folder}/image.qcow2`
  const size = 50 * MiB
  for (const cluster of ['512', '64k']) {
    await qemuImg('create', '-q', '-f', 'qcow2', '-o', `cluster_size=${cluster}`, path, String(size))
    const bytes = Buffer.alloc(100)
    bytes.set([0b1010_0101, 0xff], 3)
    bytes[99] = 0b1111 // of which bits 792 to 795 of 800 are the disk's
    const mixed = Buffer.concat([Buffer.alloc(4096, 0xff), Buffer.alloc(4096), randomBytes(4608, 1)]) // of 102400 bits
    {
      await using stack = new AsyncDisposableStack()
      const node = await openImage<Qcow2Node>(path, stack)
      await storeBitmaps(node.image, [content('a', bytes), content('b', mixed, { granularityBits: 9, enabled: false })])
      await storeBitmaps(node.image, [content('kept', Buffer.alloc(100), { reserve: true }), content('a', bytes)])
    }
    t.equal(await qemuCheck(path), '')
    const info = JSON.parse(await qemuImg('info', '--output=json', path))['format-specific'].data.bitmaps
    t.same(
      info.map((one: Record<string, unknown>) => [one['name'], one['granularity'], one['flags']]),
      [
        ['b', 512, []],
        ['kept', 65536, ['auto']],
        ['a', 65536, ['auto']],
      ],
    )
    t.same(bytesFrom(await bitsByNbd(path, 'a', folder), 65536, 100), bytes)
    t.same(bytesFrom(await bitsByNbd(path, 'b', folder), 512, 12800), mixed)
    await qemuImg('bitmap', '--merge', 'a', path, 'kept')
    await qemuImg('bitmap', '--remove', path, 'b')
    await using stack = new AsyncDisposableStack()
    const node = await openImage<Qcow2Node>(path, stack)
    t.same(await bytesOf(node.image, 'kept'), bytes)
    await removeBitmap(node.image, 'a')
    await removeBitmap(node.image, 'kept')
    await t.rejects(removeBitmap(node.image, 'a'), NotFound)
    await stack.disposeAsync()
    t.equal(await qemuCheck(path), '')
    t.notMatch(await qemuImg('info', path), 'bitmaps')
  }
})

/** The dirty ranges that an NBD client is told of, by qemu-nbd and qemu-img map. */
async function bitsByNbd(path: string, name: string, folder: string): Promise<[number, number][]> {
  const socket = `${folder}/nbd`
  const { status, stderr } = await run('qemu-nbd', [
    '-f',
    'qcow2',
    '-r',
    '-B',
    name,
    '-k',
    socket,
    '--fork',
    '--pid-file',
    `${folder}/pid`,
    path,
  ])
  if (status !== 0) throw new Error(stderr)
  const options = `driver=nbd,server.type=unix,server.path=${socket},x-dirty-bitmap=qemu:dirty-bitmap:${name}`
  const map = JSON.parse(await qemuImg('map', '--output=json', '--image-opts', options)) as {
    start: number
    length: number
    data: boolean
  }[]
  return map.filter(({ data }) => !data).map(({ start, length }) => [start, length])
}

function bytesFrom(ranges: [number, number][], granularity: number, length: number) {
  const bytes = Buffer.alloc(length)
  for (const [start, size] of ranges)
    for (let bit = start / granularity; bit < (start + size) / granularity; bit++) bytes[bit >> 3]! |= 1 << (bit & 7)
  return bytes
}

t.test(
  'a guest that writes when nobody keeps the bitmaps makes them inconsistent, in our eyes and in QEMU’s',
  { skip },
  async t => {
    await using scratch = new AsyncDisposableStack()
    const path = `${await scratchFolder(scratch)}/image.qcow2`
    await qemuImg('create', '-q', '-f', 'qcow2', path, '10M')
    for (const [name, more] of [
      ['on', []],
      ['off', ['--disable']],
    ] as const)
      await qemuImg('bitmap', '--add', ...more, path, name)
    {
      await using stack = new AsyncDisposableStack()
      const node = await openImage<Qcow2Node>(path, stack)
      await node.flush()
      t.same(
        (await listBitmaps(node.image)).bitmaps.map(({ inUse }) => inUse),
        [false, false],
        'to open it is not enough',
      )
      await node.write(0, Buffer.alloc(1))
      t.same(
        (await listBitmaps(node.image)).bitmaps.map(({ inUse }) => inUse),
        [true, false],
      )
      await t.rejects(bytesOf(node.image, 'on'), CorruptImage)
    }
    t.match(await qemuImg('info', path), /name: on|in-use/)
    {
      await using stack = new AsyncDisposableStack()
      const node = await openImage<Qcow2Node>(path, stack)
      await storeBitmaps(node.image, [content('on', Buffer.alloc(20))])
      node.attendBitmaps()
      await node.write(0, Buffer.alloc(1))
      t.same(
        (await listBitmaps(node.image)).bitmaps.map(({ name, inUse }) => [name, inUse]),
        [
          ['off', false],
          ['on', false],
        ],
      )
      await markInUse(node.image, ({ name }) => name === 'on')
      t.same(
        (await listBitmaps(node.image)).bitmaps.map(({ name, inUse }) => [name, inUse]),
        [
          ['off', false],
          ['on', true],
        ],
      )
      await t.rejects(node.resize(20 * MiB), NotSupported)
      await removeBitmap(node.image, 'off')
      await node.resize(20 * MiB)
      await storeBitmaps(node.image, [content('on', randomBytes(40, 1))])
      t.same(await bytesOf(node.image, 'on'), randomBytes(40, 1))
    }
    t.equal(await qemuCheck(path), '')
  },
)

t.test('a damaged bitmap, or directory, is told of and removed, and the disk opens all the same', { skip }, async t => {
  await using scratch = new AsyncDisposableStack()
  const folder = await scratchFolder(scratch)
  const good = `${folder}/good.qcow2`
  await qemuImg('create', '-q', '-f', 'qcow2', good, '10M')
  for (const name of ['first', 'second']) await qemuImg('bitmap', '--add', good, name)
  const bytes = readFileSync(good)
  const extension = bytes.indexOf(Buffer.from('23852875', 'hex'))
  const directory = bytes.readUInt32BE(extension + 8 + 20)
  const damages: [what: string, wanted: unknown, (bytes: Buffer) => unknown][] = [
    [
      'an unknown type',
      [
        ['first', true],
        ['second', false],
      ],
      bytes => (bytes[directory + 16] = 7),
    ],
    [
      'a granularity too small',
      [
        ['first', true],
        ['second', false],
      ],
      bytes => (bytes[directory + 17] = 3),
    ],
    [
      'unknown flags',
      [
        ['first', true],
        ['second', false],
      ],
      bytes => bytes.writeUInt32BE(0x80, directory + 12),
    ],
    [
      'a table off its cluster',
      [
        ['first', true],
        ['second', false],
      ],
      bytes => bytes.writeUInt32BE(0x30001, directory + 4),
    ],
    [
      'a table of another size',
      [
        ['first', true],
        ['second', false],
      ],
      bytes => bytes.writeUInt32BE(9, directory + 8),
    ],
    ['a name that reaches beyond the directory', [], bytes => bytes.writeUInt16BE(60000, directory + 18)],
    ['a directory elsewhere', [], bytes => bytes.writeUInt32BE(0x7000_0000, extension + 8 + 20)],
    ['a directory of no size', [], bytes => bytes.writeUInt32BE(0, extension + 8 + 12)],
    ['too many bitmaps', [], bytes => bytes.writeUInt32BE(70000, extension + 8)],
    [
      'no autoclear bit',
      [
        ['first', true],
        ['second', true],
      ],
      bytes => (bytes[95] = 0),
    ],
  ]
  for (const [what, wanted, damage] of damages) {
    const path = `${folder}/bad.qcow2`
    const damaged = Buffer.from(bytes)
    damage(damaged)
    writeFileSync(path, damaged)
    await using stack = new AsyncDisposableStack()
    const node = await openImage<Qcow2Node>(path, stack)
    node.attendBitmaps()
    const { bitmaps, problem } = await listBitmaps(node.image)
    t.same(
      bitmaps.map(({ name, inconsistent }) => [name, inconsistent !== undefined]),
      wanted,
      what,
    )
    t.equal(problem !== undefined, bitmaps.length === 0, what)
    await node.write(MiB, randomBytes(1000, 1))
    await removeBitmap(node.image, undefined)
    await storeBitmaps(node.image, [content('new', randomBytes(20, 2))])
    await checkImage(node.image, 'all')
    await stack.disposeAsync()
    t.equal(await qemuCheck(path), '', what)
    t.match(await qemuImg('info', path), 'name: new', what)
  }
})

t.test('what cannot be stored is refused, and changes nothing', async t => {
  const file = new MemoryNode(Buffer.alloc(0))
  await using node = await newImage(file, { size: 10 * MiB })
  await storeBitmaps(node.image, [content('a', randomBytes(20, 1))])
  const refused = (contents: BitmapContent[], error: typeof InvalidParameter) =>
    t.rejects(storeBitmaps(node.image, contents), error)
  await refused([content('x'.repeat(1024), Buffer.alloc(20))], InvalidParameter)
  await refused([content('', Buffer.alloc(20))], InvalidParameter)
  await refused([content('b', Buffer.alloc(20), { granularityBits: 8 })], InvalidParameter)
  await refused([content('b', Buffer.alloc(20), { granularityBits: 32 })], InvalidParameter)
  await t.rejects(
    storeBitmaps(node.image, [
      content('a', randomBytes(20, 2)),
      content('b', Buffer.alloc(20), {
        read() {
          throw new NoSpace('the bitmap is gone')
        },
      }),
    ]),
    { message: 'the bitmap is gone' },
  )
  t.same(await bytesOf(node.image, 'a'), randomBytes(20, 1), 'all or none')
  await node.image.settle()
  const { corruptions, leaks, messages } = await checkImage(node.image)
  t.same([corruptions, leaks], [0, 0], messages.join('; '))
  await using old = await newImage(new MemoryNode(Buffer.alloc(0)), { size: MiB, version: 2 })
  await t.rejects(storeBitmaps(old.image, [content('a', Buffer.alloc(2))]), {
    message: 'Cannot store dirty bitmaps in qcow2 v2 files',
  })
})

t.test('a bitmap with space set aside is stored when there is no other space', async t => {
  const file = new MemoryNode(Buffer.alloc(0))
  await using node = await newImage(file, { size: 64 * MiB, clusterSize: 512 })
  const options = { granularityBits: 9, reserve: true } as const
  await storeBitmaps(node.image, [content('a', Buffer.alloc(16384), { ...options, inUse: true })])
  await node.image.settle()
  const resize = file.resize.bind(file)
  file.resize = async size => {
    if (size > file.size) throw new NoSpace('the disk is full')
    await resize(size)
  }
  const takeAll = async () => {
    for (;;) await node.image.refcounts.allocate(1)
  }
  await t.rejects(takeAll(), NoSpace)
  await t.rejects(storeBitmaps(node.image, [content('b', randomBytes(16384, 1), options)]), NoSpace, 'a new one is not')
  await storeBitmaps(node.image, [content('a', randomBytes(16384, 1), options)])
  t.same(await bytesOf(node.image, 'a'), randomBytes(16384, 1))
})

t.test('whatever is stored, renamed, removed and stored again, is what is read, and nothing leaks', async () => {
  const bitmap = fc.record({
    name: fc.constantFrom('a', 'b', 'c', 'ä'.repeat(500)),
    granularityBits: fc.integer({ min: 9, max: 14 }),
    enabled: fc.boolean(),
    reserve: fc.boolean(),
    seed: fc.constantFrom(0, 1, 2, 3),
  })
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(512, 4096, 65536),
      fc.integer({ min: 1, max: 9000 }),
      fc.array(fc.oneof(fc.array(bitmap, { minLength: 1, maxLength: 3 }), fc.constantFrom('a', 'b', 'c')), { maxLength: 8 }),
      async (clusterSize, sectors, steps) => {
        const file = new MemoryNode(Buffer.alloc(0))
        const size = sectors * 512
        const model = new Map<string, Buffer>()
        const node = await newImage(file, { size, clusterSize })
        for (const step of steps) {
          if (typeof step === 'string') {
            if (model.delete(step)) await removeBitmap(node.image, step)
            continue
          }
          const distinct = [...new Map(step.map(one => [one.name, one])).values()]
          const contents = distinct.map(({ seed, ...rest }) => {
            const bits = Math.ceil(size / 2 ** rest.granularityBits)
            const bytes =
              seed === 0
                ? Buffer.alloc(Math.ceil(bits / 8))
                : seed === 1
                  ? Buffer.alloc(Math.ceil(bits / 8), 0xff)
                  : randomBytes(Math.ceil(bits / 8), seed)
            if (bits % 8) bytes[bytes.length - 1]! &= (1 << (bits % 8)) - 1
            model.set(rest.name, bytes)
            return content(rest.name, bytes, rest)
          })
          await storeBitmaps(node.image, contents)
        }
        await node[Symbol.asyncDispose]()
        await using again = await openQcow2(file)
        const { bitmaps } = await listBitmaps(again.image)
        if (bitmaps.length !== model.size) throw new Error(`${bitmaps.length} bitmaps, and not ${model.size}`)
        for (const [name, bytes] of model)
          if (!(await bytesOf(again.image, name)).equals(bytes)) throw new Error(`${name} differs`)
        const { corruptions, leaks, messages } = await checkImage(again.image)
        if (corruptions + leaks > 0) throw new Error(messages.join('; '))
      },
    ),
    { numRuns: 60 },
  )
})
