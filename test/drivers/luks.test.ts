// The luks driver: the conformance suite over it, volumes that go from QEMU to us and back, and headers that lie.

import { writeFileSync } from 'node:fs'
import fc from '../helpers/property.ts'
import t from 'tap'
import { Fault } from '../../src/base/errors.ts'
import { Secret } from '../../src/base/secret.ts'
import { anyRequest } from '../../src/block/aligned-io.ts'
import type { BlockIo, BlockNode } from '../../src/block/driver.ts'
import { merge, split } from '../../src/drivers/luks/af-splitter.ts'
import { decodeHeader, HEADER_BYTES, materialBytes } from '../../src/drivers/luks/header.ts'
import { luks, LuksNode } from '../../src/drivers/luks/luks.ts'
import { portableCipher, sectorCipher } from '../../src/drivers/luks/sector-cipher.ts'
import { raw } from '../../src/drivers/raw.ts'
import { Passthrough } from '../../src/filters/passthrough.ts'
import { blockNodeSuite, readAt } from '../helpers/block-node-suite.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import { openImage } from '../helpers/image-chain.ts'
import { openContext } from '../helpers/open-context.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { missing, run } from '../helpers/tools.ts'

const lookUp = (id: string) =>
  id === 's' ? new Secret(Buffer.from('abc')) : id === 'bad' ? new Secret(Buffer.from('abd')) : undefined
const context = (file: BlockIo) => openContext({ children: { file }, lookUp })

const create = (file: BlockIo, size: number, more: object = {}) =>
  luks.creation!.create(
    luks.creation!.options.parse({ size, 'key-secret': 's', 'iter-time': 1, ...more }) as never,
    { file },
    {},
    lookUp,
  )

const open = (file: BlockIo, id = 's') => luks.open({ 'key-secret': id }, context(file))

/** As the graph does it: requests of any size. */
const inGraph = (node: BlockNode): BlockNode => new Passthrough(anyRequest(node))

const volume = async (size: number, more: object = {}) => {
  const file = new MemoryNode(Buffer.alloc(0))
  await create(file, size, more)
  return file
}

const key = randomBytes(64, 7)
let header: Promise<Buffer> | undefined

/** The same header for each: unlocking takes its time on purpose. */
blockNodeSuite(
  t,
  'luks',
  async (content, stack) => {
    header ??= volume(0).then(({ bytes }) => bytes)
    const head = await header
    const file = new MemoryNode(Buffer.concat([head, Buffer.alloc(Math.ceil(content.length / 512) * 512)]))
    const decoded = decodeHeader(head, file.size)
    const disk = inGraph(stack.use(new LuksNode(file, decoded, await sectorCipher(decoded, key))))
    await disk.write(0, content)
    return raw.open(raw.options.parse({ size: content.length }), openContext({ children: { file: disk } }))
  },
  { runs: 3 },
)

t.test('what is split comes together again, and only as a whole', async t => {
  const key = randomBytes(64, 1)
  for (const hash of ['sha1', 'sha256', 'sha512'] as const) {
    const material = split(key, 100, hash)
    t.equal(material.length, 6400)
    t.ok(merge(material, 100, hash).equals(key), hash)
    material[1234]! ^= 1
    t.notOk(merge(material, 100, hash).equals(key), `${hash}, damaged`)
  }
})

t.test('both ways to encrypt say the same, and each sector is its own', async t => {
  for (const [cipher, iv, bytes] of [
    ['xts', 'plain64', 64],
    ['xts', 'plain', 32],
    ['cbc', 'plain64', 24],
    ['cbc', 'essiv', 32],
  ] as const) {
    const how = { cipher, iv, ivHash: iv === 'essiv' ? ('sha256' as const) : undefined }
    const key = randomBytes(bytes, 2)
    const plain = Buffer.alloc(4096, 'sector of five hundred')
    using fast = await sectorCipher(how, key)
    const portable = portableCipher(how, key)
    const [one, other] = [Buffer.from(plain), Buffer.from(plain)]
    fast.encrypt(one, 2 ** 32 - 2)
    portable.encrypt(other, 2 ** 32 - 2)
    t.ok(one.equals(other), `${cipher}-${iv}`)
    t.notOk(one.subarray(0, 512).equals(one.subarray(512, 1024)))
    fast.decrypt(one, 2 ** 32 - 2)
    portable.decrypt(other, 2 ** 32 - 2)
    t.ok(one.equals(plain) && other.equals(plain))
  }
})

t.test('a volume goes from cryptsetup to QEMU to us and back', { skip: missing('cryptsetup', 'qemu-io') }, async t => {
  const folder = t.testdir({ key: 'abc' })
  for (const [index, more] of [
    ['--cipher', 'aes-xts-plain64', '--key-size', '512', '--hash', 'sha256'],
    ['--cipher', 'aes-xts-plain64', '--key-size', '256', '--hash', 'sha1'],
    ['--cipher', 'aes-cbc-essiv:sha256', '--key-size', '256', '--hash', 'sha512'],
  ].entries()) {
    const path = `${folder}/${index}.luks`
    const secret = ['--object', 'secret,id=s,data=abc']
    writeFileSync(path, Buffer.alloc(5 << 20))
    const how = [
      '--type',
      'luks1',
      '--pbkdf-force-iterations',
      '1000',
      '--batch-mode',
      '--key-file',
      `${folder}/key`,
      '--align-payload',
      '8192',
    ]
    await run('cryptsetup', ['luksFormat', ...how, ...more, path])
    const theirs = ['--image-opts', `driver=luks,key-secret=s,file.filename=${path}`]
    await run('qemu-io', [...secret, '-c', 'write -P 7 100k 50k', ...theirs])
    {
      await using stack = new AsyncDisposableStack()
      const file = await openImage(path, stack, { format: 'raw' })
      const disk = inGraph(stack.use(await open(file)))
      t.equal(disk.size, 1 << 20)
      t.ok(
        (await readAt(disk, 100 << 10, 50 << 10)).every(byte => byte === 7),
        more.join(' '),
      )
      await disk.write((200 << 10) + 5, Buffer.alloc(70_000, 9))
      await disk.flush()
      await t.rejects(open(file, 'bad'), { name: 'WrongPassword' })
    }
    const said = await run('qemu-io', [...secret, '-c', 'read -P 9 204805 70000', '-c', 'read -P 7 100k 50k', ...theirs])
    t.notMatch(said, /failed/)
  }
})

t.test('cryptsetup and qemu-io open what we make', { skip: missing('qemu-io', 'cryptsetup') }, async t => {
  const path = `${t.testdir()}/ours.luks`
  const file = await volume(1 << 20, { 'cipher-alg': 'aes-128' })
  {
    await using disk = await open(file)
    await disk.write(4096, Buffer.alloc(4096, 5))
  }
  writeFileSync(path, file.bytes)
  const dump = await run('cryptsetup', ['luksDump', path])
  t.match(dump, /Version:\s+1\nCipher name:\s+aes\nCipher mode:\s+xts-plain64\nHash spec:\s+sha256/)
  t.match(dump, /Key Slot 0: ENABLED/)
  t.match(dump, /Key Slot 7: DISABLED/)
  writeFileSync(`${path}.key`, 'abc')
  await run('cryptsetup', ['luksOpen', '--test-passphrase', '--key-file', `${path}.key`, path])
  const image = `driver=luks,key-secret=s,file.filename=${path}`
  t.notMatch(await run('qemu-io', ['--object', 'secret,id=s,data=abc', '-c', 'read -P 5 4k 4k', '--image-opts', image]), /failed/)
})

t.test('a header that lies is refused before anything is done by it', async () => {
  const { bytes } = await volume(1 << 20)
  const byte = fc.record({ at: fc.nat(HEADER_BYTES - 1), value: fc.nat(255) })
  const judge = (damage: readonly { at: number; value: number }[], cut: number) => {
    const head = Buffer.from(bytes.subarray(0, HEADER_BYTES))
    for (const { at, value } of damage) head[at] = value
    try {
      const { slots, keyBytes, payloadOffset, digestIterations } = decodeHeader(
        head.subarray(0, HEADER_BYTES - cut),
        bytes.length,
      )
      const active = slots.filter(slot => slot.active)
      if (payloadOffset > bytes.length || digestIterations > 2 ** 27) throw new Error('taken as it is')
      for (const { keyOffset, iterations } of active)
        if (keyOffset + materialBytes(keyBytes) > payloadOffset || iterations > 2 ** 27) throw new Error('taken as it is')
    } catch (error) {
      if (!(error instanceof Fault)) throw error
    }
  }
  fc.assert(fc.property(fc.array(byte, { minLength: 1, maxLength: 6 }), fc.nat(3), judge), { numRuns: 1500 })
})

t.test('what is wrong with a volume is said', async t => {
  const good = await volume(1 << 20)
  const damaged = (at: number, bytes: number[], size = good.size) => {
    const copy = Buffer.from(good.bytes.subarray(0, size))
    copy.set(bytes, at)
    return open(new MemoryNode(copy))
  }
  await t.rejects(damaged(0, [0]), { name: 'NotLuks', message: 'Volume is not in LUKS format' })
  await t.rejects(damaged(6, [0, 2]), { message: 'LUKS version 2 is not supported' })
  await t.rejects(damaged(8, [...Buffer.from('serpent')]), { name: 'NotSupported' })
  await t.rejects(
    damaged(
      8,
      Array.from({ length: 32 }, () => 65),
    ),
    { message: /not NUL terminated/ },
  )
  await t.rejects(damaged(72, [0x1b]), { name: 'NotSupported', message: /'\?ha256'/ })
  await t.rejects(damaged(108, [0xff, 0xff, 0xff, 0xff]), { name: 'CorruptVolume' })
  await t.rejects(damaged(164, [0xff]), { name: 'CorruptVolume', message: /iterations for the master key/ })
  await t.rejects(damaged(208 + 44, [0, 0, 0, 1]), { message: 'Keyslot 0 is corrupted (stripes 1 != 4000)' })
  await t.rejects(damaged(208 + 40, [0, 0, 0, 0]), { message: 'Keyslot 0 is overlapping with the LUKS header' })
  await t.rejects(damaged(0, [], 1 << 20), { name: 'CorruptVolume', message: /cut short/ })
  await t.rejects(open(new MemoryNode(Buffer.alloc(0))), { name: 'NotLuks' })
  await t.rejects(open(good, 'nope'), { message: "No secret with id 'nope'" })
  await t.rejects(luks.open({}, context(good)), { message: "Parameter 'key-secret' is required for cipher" })
  await t.rejects(volume(1000), { name: 'InvalidParameter' })
  await t.rejects(volume(1024, { 'cipher-alg': 'aes-192' }), { name: 'InvalidParameter' })
  await using _cheapest = await open(await volume(1024, { 'iter-time': 0 })) // the fewest iterations that there may be, as in QEMU
  await using disk = await open(good)
  await disk.resize((1 << 20) + 1024)
  t.ok(
    (await readAt(disk, 1 << 20, 1024)).every(byte => byte === 0),
    'grows by zeroes',
  )
  await t.rejects(disk.resize(2 ** 40), { name: 'NotSupported' })
})
