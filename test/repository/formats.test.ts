// The formats: what is encoded decodes as it was, and anything cut short or flipped is a typed error, never a crash and never a lie.

import { hash, randomBytes as noise } from 'node:crypto'
import { spawnSync } from 'node:child_process'
import { isDeepStrictEqual } from 'node:util'
import zlib from 'node:zlib'
import fc from '../helpers/property.ts'
import t from 'tap'
import { whyNotNative } from '../../src/base/native.ts'
import { portableGcm, threadGcm, type AesGcm } from '../../src/base/aes-gcm.ts'
import { portableZstd, threadZstd, type Zstd } from '../../src/base/zstd.ts'
import { attachmentBytes, contentOf } from '../../src/repository/attachment.ts'
import {
  BlobType,
  decodeBlobHeader,
  encodeBlobHeader,
  HEADER,
  openBlob,
  sealBlob,
  TAG,
  type BlobHeader,
} from '../../src/repository/blob.ts'
import { canonicalJson } from '../../src/repository/canonical-json.ts'
import { Damaged, UnknownFormat, WrongKey } from '../../src/repository/faults.ts'
import { decodeIndex, encodeIndex, type IndexedPack } from '../../src/repository/index-delta.ts'
import { newMasterKey, RepositoryKeys, slotSchema, unwrapKey, wrapKey } from '../../src/repository/keys.ts'
import {
  decodeManifest,
  encodeManifest,
  isTombstone,
  pointKey,
  timeOfKey,
  tombstone,
  type Manifest,
} from '../../src/repository/manifest.ts'
import {
  decodeFooter,
  decodePackHeader,
  decodeTrailer,
  encodePackHeader,
  encodeTrailer,
  FOOTER,
  PACK_HEADER,
  packKey,
  PackKind,
  packOfKey,
  trailerLength,
  type PackEntry,
} from '../../src/repository/pack.ts'
import { decodeSession, encodeSession } from '../../src/repository/session-record.ts'
import { checkKey } from '../../src/repository/target.ts'
import { chunkCount, decodeNode, emptyNode, encodeNode, FAN_OUT, rootLevel } from '../../src/repository/tree-node.ts'
import { bytesOfUuid, isUuid, uuidOf } from '../../src/repository/uuid.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const REPOSITORY = '01234567-89ab-4def-8123-456789abcdef'
const SESSION = 'fedcba98-7654-4210-8edc-ba9876543210'
const plainKeys = new RepositoryKeys(REPOSITORY)
const secretKeys = new RepositoryKeys(REPOSITORY, newMasterKey())
const uuid = fc.uuid()
const id = fc.uint8Array({ minLength: 32, maxLength: 32 }).map(bytes => Buffer.from(bytes))

/** Whatever decode does with broken bytes, it throws Damaged, or returns what `same` accepts. */
function onlyDamaged<T>(decode: () => T, same: (value: T) => boolean = () => false) {
  let value: T
  try {
    value = decode()
  } catch (error) {
    if (error instanceof Damaged || error instanceof UnknownFormat) return
    throw error
  }
  if (!same(value)) throw new Error('broken bytes decoded to something')
}

/** Every truncation, and every bit flipped. */
function tryBroken(
  bytes: Buffer,
  decode: (broken: Buffer) => unknown,
  { ignore = () => false, same = () => false }: { ignore?: (byte: number) => boolean; same?: (value: unknown) => boolean } = {},
) {
  for (let length = 0; length < bytes.length; length++) onlyDamaged(() => decode(bytes.subarray(0, length)), same)
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    if (ignore(bit >> 3)) continue
    const broken = Buffer.from(bytes)
    broken[bit >> 3]! ^= 1 << (bit & 7)
    onlyDamaged(() => decode(broken), same)
  }
}

/** Of a thread. */
interface Calls {
  readonly zstd: Zstd
  readonly gcm: AesGcm
}
const portable: Calls = { zstd: portableZstd, gcm: portableGcm }
const native: Calls = { zstd: await threadZstd(), gcm: await threadGcm() }

const sealed = (keys: RepositoryKeys, plain: Buffer, counter = 1, calls = portable) => {
  const into = Buffer.alloc(HEADER + plain.length + TAG)
  const work = { type: BlobType.data, id: keys.idOf(plain), counter, key: keys.ofSession(SESSION), ...calls }
  return into.subarray(0, sealBlob(plain, work, into))
}
const opened = (keys: RepositoryKeys, blob: Buffer, calls = portable, into?: Buffer) =>
  openBlob(blob, { type: BlobType.data, key: keys.ofSession(SESSION), idOf: keys.idOf, ...calls, into })

t.test('a blob header decodes as it was encoded', async () => {
  fc.assert(
    fc.property(
      fc.nat(255),
      fc.constantFrom(0, 1),
      fc.boolean(),
      fc.nat(1 << 24),
      fc.maxSafeNat(),
      id,
      (type, codec, encrypted, plainLength, counter, id) => {
        const header: BlobHeader = {
          type,
          codec,
          encrypted,
          storedLength: plainLength + (encrypted ? TAG : 0),
          plainLength,
          counter,
          id,
        }
        const into = Buffer.alloc(HEADER)
        encodeBlobHeader(header, into)
        return JSON.stringify(decodeBlobHeader(into)) === JSON.stringify(header)
      },
    ),
  )
})

for (const [name, keys] of [
  ['plain', plainKeys],
  ['encrypted', secretKeys],
] as const) {
  t.test(`a ${name} blob opens to the bytes that were sealed, compressed where that is shorter`, async t => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 3000 }), fc.boolean(), fc.nat(), (bytes, repeat, counter) => {
        const plain = repeat ? Buffer.concat([Buffer.from(bytes), Buffer.from(bytes), Buffer.alloc(500, 1)]) : Buffer.from(bytes)
        const blob = sealed(keys, plain, counter)
        return opened(keys, blob).equals(plain) && blob.length <= HEADER + plain.length + TAG
      }),
    )
    t.ok(sealed(keys, Buffer.alloc(100_000, 7)).length < 300)
  })

  t.test(`a ${name} blob that is cut short, or has any bit flipped, is damaged`, async () => {
    for (const plain of [Buffer.from('short'), Buffer.alloc(2000, 'compressible '), Buffer.alloc(0)])
      // zstd has bits that mean nothing; what comes out is what went in all the same.
      for (const calls of [portable, native])
        tryBroken(sealed(keys, plain), broken => opened(keys, broken, calls), { same: found => plain.equals(found as Buffer) })
  })

  t.test(`a ${name} blob opens by either zstd and cipher, whichever has sealed it`, async () => {
    if (native.zstd === portableZstd) return t.comment(whyNotNative)
    const into = Buffer.alloc(10_000)
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 3000 }), fc.nat(3), (bytes, repeat) => {
        const plain = Buffer.concat(Array.from({ length: repeat }, () => bytes))
        const blob = sealed(keys, plain, 1, native)
        return (
          opened(keys, blob).equals(plain) &&
          opened(keys, sealed(keys, plain), native, into).equals(plain) &&
          sealed(keys, plain, 1, { ...portable, gcm: native.gcm }).equals(sealed(keys, plain)) &&
          blob.length <= HEADER + plain.length + TAG
        )
      }),
    )
  })
}

t.test('Node’s own program has the zstd and the cipher that threads call', { skip: whyNotNative ?? false }, async t => {
  const { zstd, gcm } = native
  t.not(zstd, portableZstd)
  t.not(gcm, portableGcm)
  const into = Buffer.alloc(100_000)
  const length = zstd.compress(Buffer.alloc(50_000, 'as zstd says'), into)!
  t.ok(zlib.zstdDecompressSync(into.subarray(0, length)).equals(Buffer.alloc(50_000, 'as zstd says')))
  t.equal(zstd.compress(noise(50_000), into.subarray(0, 50_000)), undefined, 'what does not get smaller has no room')
  t.throws(() => zstd.decompress(into.subarray(0, length), Buffer.alloc(49_999)), /too small/)
  t.throws(() => zstd.decompress(Buffer.alloc(100, 'x'), into), /Unknown frame descriptor/)
})

t.test('an encrypted blob opens with its own key, session and place only', async t => {
  const blob = sealed(secretKeys, Buffer.from('secret'))
  t.throws(() => opened(new RepositoryKeys(REPOSITORY, newMasterKey()), blob), Damaged)
  t.throws(() => opened(plainKeys, blob), Damaged)
  t.throws(() => openBlob(blob, { type: BlobType.data, key: secretKeys.ofSession(REPOSITORY), idOf: secretKeys.idOf }), Damaged)
  t.throws(() => openBlob(blob, { type: BlobType.node, key: secretKeys.ofSession(SESSION), idOf: secretKeys.idOf }), Damaged)
  const wrong = secretKeys.idOf(Buffer.from('another'))
  t.throws(
    () => openBlob(blob, { type: BlobType.data, id: wrong, key: secretKeys.ofSession(SESSION), idOf: secretKeys.idOf }),
    Damaged,
  )
  t.throws(
    () => opened(secretKeys, sealed(plainKeys, Buffer.from('secret'))),
    Damaged,
    'one that is not encrypted is not believed',
  )
  const swapped = Buffer.concat([blob.subarray(0, HEADER), sealed(secretKeys, Buffer.from('other!'), 2).subarray(HEADER)])
  t.throws(() => opened(secretKeys, swapped), Damaged, 'and so are bytes under the header of others')
})

t.test(
  'ids and stored bytes are what sha256sum, zstd and Python make of them',
  { skip: spawnSync('zstd', ['--version']).error && 'zstd is missing' },
  async t => {
    const plain = Buffer.alloc(70_000, 'some text that compresses ')
    const blob = sealed(plainKeys, plain)
    const { id, codec } = decodeBlobHeader(blob)
    t.equal(codec, 1)
    t.equal(spawnSync('sha256sum', { input: plain, encoding: 'utf8' }).stdout.slice(0, 64), id.toString('hex'))
    t.ok(spawnSync('zstd', ['-dc'], { input: blob.subarray(HEADER) }).stdout.equals(plain))
    const python = `
import sys, hmac, hashlib, zlib, struct
master, salt = bytes.fromhex(sys.argv[1]), bytes.fromhex(sys.argv[2])
key = hmac.new(hmac.new(salt, master, hashlib.sha256).digest(), b'stillpoint id\\x01', hashlib.sha256).digest()
header = bytes.fromhex(sys.argv[3])
assert zlib.crc32(header[:60]) == struct.unpack('>I', header[60:])[0]
print(hmac.new(key, sys.stdin.buffer.read(), hashlib.sha256).hexdigest())`
    const master = newMasterKey()
    const keys = new RepositoryKeys(REPOSITORY, master)
    const header = blob.subarray(0, HEADER).toString('hex')
    const { stdout, stderr } = spawnSync(
      'python3',
      ['-c', python, master.toString('hex'), bytesOfUuid(REPOSITORY).toString('hex'), header],
      { input: plain, encoding: 'utf8' },
    )
    t.equal(stdout.trim(), keys.idOf(plain).toString('hex'), stderr)
  },
)

t.test('a blob that would grow beyond what it says is stopped there', async t => {
  const bomb = sealed(plainKeys, Buffer.alloc(1 << 20, 1))
  const header = { ...decodeBlobHeader(bomb), plainLength: 5000 }
  const lying = Buffer.from(bomb)
  encodeBlobHeader({ ...header, id: Buffer.from(header.id) }, lying)
  t.throws(() => opened(plainKeys, lying), Damaged)
})

const entries = fc.array(fc.tuple(fc.nat(5000), fc.nat(1 << 20), fc.nat(255), id), { maxLength: 8 }).map(parts => {
  let offset = PACK_HEADER
  return parts.map(([storedLength, plainLength, type, id]): PackEntry => {
    const entry = { offset, storedLength, plainLength, type, id }
    offset += HEADER + storedLength
    return entry
  })
})
const sizeOf = (entries: readonly PackEntry[]) =>
  PACK_HEADER + entries.reduce((sum, { storedLength }) => sum + HEADER + storedLength, 0) + trailerLength(entries.length)

t.test('the header and the trailer of a pack decode as they were encoded, and broken ones do not', async t => {
  fc.assert(
    fc.property(fc.constantFrom(1, 2, 3), uuid, uuid, fc.nat(), entries, (kind, repository, session, time, entries) => {
      const header = { kind, repository, session, time }
      const bytes = Buffer.alloc(PACK_HEADER)
      encodePackHeader(header, bytes)
      if (JSON.stringify(decodePackHeader(bytes)) !== JSON.stringify(header)) return false
      const end = Buffer.alloc(trailerLength(entries.length) + 10)
      if (encodeTrailer(entries, end, 10) !== end.length || decodeFooter(end, sizeOf(entries)) !== entries.length) return false
      return JSON.stringify(decodeTrailer(end, sizeOf(entries))) === JSON.stringify(entries)
    }),
  )
  const bytes = Buffer.alloc(PACK_HEADER)
  encodePackHeader({ kind: 1, repository: REPOSITORY, session: SESSION, time: 5 }, bytes)
  tryBroken(bytes, decodePackHeader)
  const [sample] = fc.sample(
    entries.filter(({ length }) => length > 2),
    1,
  )
  const end = Buffer.alloc(trailerLength(sample!.length))
  encodeTrailer(sample!, end, 0)
  // Four bytes of the footer are spare.
  tryBroken(end, broken => decodeTrailer(broken, sizeOf(sample!)), {
    ignore: byte => byte >= end.length - 8 && byte < end.length - 4,
  })
  t.throws(() => decodeTrailer(Buffer.alloc(FOOTER), 100), Damaged)
  const name = 'ab'.repeat(32)
  t.same(packOfKey(packKey(PackKind.meta, name)), { name, kind: PackKind.meta })
  for (const key of [`packs/cd/${name}`, 'packs/ab/ab', `packs/ab/${name}/x`, `points/ab/${name}`])
    t.equal(packOfKey(key), undefined, key)
})

t.test('an index object decodes as it was encoded, and broken ones are damaged', async t => {
  const pack = fc
    .tuple(id, fc.constantFrom(PackKind.data, PackKind.meta), entries)
    .map(([name, kind, entries]): IndexedPack => ({ name: name.toString('hex'), kind, size: sizeOf(entries), entries }))
  fc.assert(
    fc.property(fc.array(pack, { maxLength: 4 }), packs => {
      const bytes = encodeIndex(REPOSITORY, packs)
      return JSON.stringify(decodeIndex(bytes, REPOSITORY)) === JSON.stringify(packs)
    }),
  )
  const [packs] = fc.sample(fc.array(pack, { minLength: 2, maxLength: 2 }), 1)
  const bytes = encodeIndex(REPOSITORY, packs!)
  tryBroken(bytes, broken => decodeIndex(broken, REPOSITORY))
  t.throws(() => decodeIndex(bytes, SESSION), /another repository/)
  // With a checksum that holds, lies are still found.
  fc.assert(
    fc.property(fc.nat(bytes.length - 33), fc.nat(255), (at, value) => {
      const lying = Buffer.from(bytes)
      lying[at] = value
      lying.set(hash('sha256', lying.subarray(0, -32), 'buffer'), lying.length - 32)
      onlyDamaged(
        () => decodeIndex(lying, REPOSITORY),
        () => true,
      )
    }),
    { numRuns: 2000 },
  )
})

t.test('a node of a tree decodes as it was encoded, and broken ones are damaged or another node', async t => {
  const places = fc.array(fc.tuple(fc.nat(255), id), { minLength: 1, maxLength: 20 })
  fc.assert(
    fc.property(places, fc.nat(6), (taken, level) => {
      const places: (Buffer | undefined)[] = [...emptyNode(level).places]
      for (const [place, id] of taken) places[place] = id
      const node = decodeNode(encodeNode({ level, places }), level)
      return places.every((id, place) => (id ? node.places[place]?.equals(id) : node.places[place] === undefined))
    }),
  )
  const bytes = encodeNode({
    level: 1,
    places: emptyNode(1).places.map((_, place) => (place % 100 === 3 ? randomBytes(32, place) : undefined)),
  })
  for (let length = 0; length < bytes.length; length++) onlyDamaged(() => decodeNode(bytes.subarray(0, length), 1))
  for (let byte = 0; byte < 40; byte++) {
    const broken = Buffer.from(bytes)
    broken[byte]! ^= 1
    onlyDamaged(
      () => decodeNode(broken, 1),
      () => byte > 4 && byte < 8,
    )
  }
  t.throws(() => decodeNode(bytes, 0), Damaged)
  t.throws(() => decodeNode(encodeNode(emptyNode(0)), 0), Damaged, 'one without ids is never written')
})

t.test('a tree has as many levels as its chunks need', async t => {
  for (const [chunks, level] of [
    [0, 0],
    [1, 0],
    [256, 0],
    [257, 1],
    [65536, 1],
    [65537, 2],
  ] as const) {
    t.equal(rootLevel(chunks * 65536, 65536), level, `${chunks} chunks`)
    t.equal(chunkCount(chunks * 65536, 65536), chunks)
  }
  t.equal(rootLevel(65536 * FAN_OUT + 1, 65536), 1)
  t.ok(rootLevel(2 ** 53 - 1, 65536) <= 6)
})

const manifest: Manifest = {
  format: 1,
  repository: REPOSITORY,
  id: SESSION,
  machine: 'db',
  time: '2026-11-25T02:00:00.123Z',
  consistency: 'quiesced',
  complete: true,
  parent: null,
  disks: [
    {
      name: 'root',
      size: 10 ** 12,
      chunkSize: 262144,
      root: 'ab'.repeat(32),
      read: { mode: 'full', why: 'first' },
      dirty: 1,
      new: 2,
      stored: 3,
    },
    {
      name: 'data',
      size: 0,
      chunkSize: 65536,
      root: null,
      read: { mode: 'bitmap', why: 'x' },
      dirty: 0,
      new: 0,
      stored: 0,
      checkpoint: 'c1',
    },
  ],
  attachments: [{ name: 'x.xml', size: 5, id: 'cd'.repeat(32) }],
}

t.test('a manifest decodes as it was encoded; a broken, foreign or newer one does not', async t => {
  for (const keys of [plainKeys, secretKeys]) {
    const bytes = encodeManifest(manifest, keys, { session: SESSION, counter: 7, time: 1 })
    t.same(decodeManifest(bytes, keys, REPOSITORY, 'it'), manifest)
    tryBroken(bytes, broken => decodeManifest(broken, keys, REPOSITORY, 'it'), {
      same: found => isDeepStrictEqual(found, manifest),
    })
    t.throws(() => decodeManifest(bytes, keys, SESSION, 'it'), /another repository/)
    const newer = encodeManifest({ ...manifest, format: 2 as 1 }, keys, { session: SESSION, counter: 7, time: 1 })
    t.throws(() => decodeManifest(newer, keys, REPOSITORY, 'it'), UnknownFormat)
    const odd = encodeManifest({ ...manifest, machine: '' }, keys, { session: SESSION, counter: 7, time: 1 })
    t.throws(() => decodeManifest(odd, keys, REPOSITORY, 'it'), /it is not as it should be: machine/)
  }
})

t.test('the key of a restore point says when, sorts by time, and carries any name of a machine', async t => {
  t.equal(pointKey(manifest), 'points/db/20261125T020000123Z-fedcba98')
  t.same(timeOfKey(pointKey(manifest)), new Date(manifest.time))
  fc.assert(
    fc.property(fc.string({ minLength: 1, maxLength: 20, unit: 'binary' }), machine => {
      const key = pointKey({ ...manifest, machine })
      checkKey(key)
      return timeOfKey(key)?.toISOString() === manifest.time && key.split('/').length === 3
    }),
    { numRuns: 40 },
  )
  for (const key of ['points/db/x', 'points/20261125T020000123Z-fedcba98', 'points/db/20269925T020000123Z-fedcba98'])
    t.equal(timeOfKey(key), undefined)
  t.ok(isTombstone(tombstone(new Date())))
  t.notOk(isTombstone(encodeManifest(manifest, plainKeys, { session: SESSION, counter: 7, time: 1 })))
})

t.test('a key slot opens with its passphrase alone, however it is typed', async t => {
  const master = newMasterKey()
  const slot = await wrapKey(master, 'pässwort', REPOSITORY, { cost: { n: 2, r: 1, p: 1 } })
  t.ok((await unwrapKey(slotSchema.parse(slot), 'pa\u0308sswort', REPOSITORY)).equals(master))
  await t.rejects(unwrapKey(slot, 'passwort', REPOSITORY), WrongKey)
  await t.rejects(unwrapKey(slot, 'pässwort', SESSION), WrongKey, 'of another repository')
  await t.rejects(unwrapKey({ ...slot, wrapped: 'AAAA' }, 'pässwort', REPOSITORY), Damaged)
  for (const hostile of [{ n: 2 ** 30 }, { r: 1000 }, { p: 1e6 }, { n: 0 }])
    t.throws(() => slotSchema.parse({ ...slot, ...hostile }))
})

t.test('JSON is written in one way only', async t => {
  t.equal(String(canonicalJson({ b: [1, { d: undefined, c: null }], a: 'ä' })), '{"a":"ä","b":[1,{"c":null}]}')
  const record = {
    version: 1,
    id: SESSION,
    kind: 'writer',
    state: 'active',
    epoch: 0,
    beat: 0,
    host: 'h',
    started: manifest.time,
  } as const
  t.same(decodeSession(encodeSession(record), 'x'), record)
  t.throws(() => decodeSession(Buffer.from('{'), 'sessions/x'), /sessions\/x is no JSON/)
  t.throws(() => decodeSession(Buffer.from('{"version":2}'), 'sessions/x'), Damaged)
})

t.test('ids in names and in records are the same ids', async () => {
  fc.assert(fc.property(uuid, uuid => isUuid(uuid) && uuidOf(bytesOfUuid(uuid)) === uuid))
})

t.test('an attachment comes back, and a node is none', async t => {
  t.same(contentOf(attachmentBytes(Buffer.from('x'))), Buffer.from('x'))
  t.throws(() => contentOf(Buffer.from('SPn1')), Damaged)
  t.throws(() => attachmentBytes(Buffer.alloc(5 << 20)), /4 MiB/)
})
