// Portable archives: other people's ZIP programs read what we write, everything comes back as it was, and no hostile file does harm.

import { closeSync, ftruncateSync, openSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { crc32, deflateRawSync } from 'node:zlib'
import fc from '../helpers/property.ts'
import t from 'tap'
import { Archive } from '../../src/archive/archive.ts'
import { exportPoints } from '../../src/archive/export-points.ts'
import { BadArchive } from '../../src/archive/faults.ts'
import { parseList, safePart, windowOf } from '../../src/archive/format.ts'
import { importPoint } from '../../src/archive/import-points.ts'
import { restoreArchived } from '../../src/archive/restore-archive.ts'
import { ZipFile } from '../../src/archive/zip-file.ts'
import { Method, ZipWriter } from '../../src/archive/zip-writer.ts'
import { Busy, Cancelled, InvalidParameter } from '../../src/base/errors.ts'
import { Damaged } from '../../src/repository/faults.ts'
import { forget } from '../../src/repository/points.ts'
import { scratchFolder } from '../helpers/qemu.ts'
import { MemoryTarget } from '../helpers/memory-target.ts'
import { BytesSink, done, newRepository, pushDisks, restored, sourceOf } from '../helpers/push-point.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'
import { attempt, missing, PYTHON, run } from '../helpers/tools.ts'

const CHUNK = 65536
const MB = 1 << 20

const stack = new AsyncDisposableStack()
t.teardown(() => stack.disposeAsync())
const folder = await scratchFolder(stack)
const path = (name: string) => `${folder}/${name}`
const { signal } = new AbortController()

// Pieces with holes around and inside them, a piece without an end, and a disk that is empty.
const root = diskContent(160 * CHUNK, 1)
root.fill(0, 64 * CHUNK, 128 * CHUNK)
const later = Buffer.from(root)
later.set(randomBytes(1000, 2), 5 * CHUNK + 100)
later.fill(0, 140 * CHUNK, 150 * CHUNK)
const data = randomBytes(9 * CHUNK + 1536 + 7, 3)
const empty = Buffer.alloc(5 * CHUNK)
const NAMES = ['root', 'dä/ta', '..'] as const

const target = new MemoryTarget()
const repository = await newRepository(target, { passphrase: 'x' })
const pushed = async (disks: readonly Buffer[], machine: string) =>
  pushDisks(
    repository,
    disks.map((bytes, at) => ({ name: NAMES[at]!, source: sourceOf(bytes), checkpoint: 'c1' })),
    { machine, attachments: [{ name: 'config', bytes: Buffer.from('memory: 1G\n') }], consistency: 'quiesced' },
  )
const first = await pushed([root, data, empty], 'db %1')
const second = await pushed([later, data, empty], 'db %1')

const exported = (name: string, points: readonly string[], more: object = {}) =>
  done(exportPoints({ repository, points, path: path(name), signal, ...more }))
await exported('both.zip', [second.key, first.key, first.key])

t.test('unzip, zipinfo and Python read an archive, and Python puts the disks together again', async t => {
  t.equal(statSync(path('both.zip')).mode & 0o777, 0o600)
  t.match(await run('unzip', ['-t', path('both.zip')]), /No errors detected/, { skip: missing('unzip') })
  const listed = await run('zipinfo', ['-v', path('both.zip')])
  t.notMatch(listed, /warning|error/i)
  const script = `
import json, sys, zipfile
archive = zipfile.ZipFile(sys.argv[1])
assert archive.testzip() is None
for point in json.load(archive.open('archive.json'))['points']:
    for number, disk in enumerate(point['manifest']['disks']):
        out = open(f"{sys.argv[2]}-{point['manifest']['id']}-{number}", 'wb')
        lists = [n for n in archive.namelist() if n.startswith(point['folder'] + '/') and n.endswith('.list')]
        for line in archive.read(lists[number]).decode().splitlines():
            offset, length, sha256, entry = line.split(' ', 3)
            out.seek(int(offset))
            out.write(archive.read(entry))
        out.truncate(disk['size'])
`
  await run(PYTHON, ['-c', script, path('both.zip'), path('python')])
  for (const [{ manifest }, disks] of [
    [first, [root, data, empty]],
    [second, [later, data, empty]],
  ] as const)
    for (const [number, bytes] of disks.entries())
      t.ok(readFileSync(path(`python-${manifest.id}-${number}`)).equals(bytes), `${manifest.id} ${number}`)
})

t.test('what two restore points have in common is written once', async t => {
  await exported('one.zip', [first.key])
  const [one, both] = ['one.zip', 'both.zip'].map(name => statSync(path(name)).size)
  t.ok(both! - one! < 6 * MB, `${one} and ${both} bytes: a window of 4 MiB and a half have changed`)
})

t.test('restored straight from an archive a disk is as it was: fresh, over old data, and in place', async t => {
  await using archive = await Archive.open(path('both.zip'))
  t.same(
    archive.points.map(({ key }) => key),
    [first.key, second.key],
  )
  for (const [number, disks] of [
    [root, data, empty],
    [later, data, empty],
  ].entries()) {
    const point = archive.points[number]!
    for (const [at, bytes] of disks.entries()) {
      const disk = await archive.disk(point, point.manifest.disks[at]!)
      const fresh = new BytesSink(Buffer.alloc(bytes.length + 512, 0xee))
      t.match(await done(restoreArchived({ disk, sink: fresh })), { done: bytes.length })
      t.ok(fresh.bytes.subarray(0, bytes.length).equals(bytes))
      t.ok(
        fresh.bytes.subarray(bytes.length).every(byte => byte === 0xee),
        'what is behind its end is left alone',
      )
      const inPlace = new BytesSink(Buffer.from(at === 0 ? root : bytes))
      const told = await done(restoreArchived({ disk, sink: inPlace, inPlace }))
      t.ok(inPlace.bytes.equals(bytes))
      t.equal(told.written, number === 1 && at === 0 ? told.written : 0)
      t.ok(told.written <= 3 * MB)
    }
  }
})

t.test('imported, restore points are what they were, once, and nothing is stored twice', async t => {
  await using archive = await Archive.open(path('both.zip'))
  const other = await newRepository(new MemoryTarget(), { passphrase: 'y' })
  const [one, two] = archive.points
  t.match(await done(importPoint(archive, one!, other)), { key: first.key, new: true })
  const told = await done(importPoint(archive, two!, other))
  t.ok(told.added > 0 && told.added <= 2 * CHUNK, `${told.added} bytes`)
  t.match(await done(importPoint(archive, two!, other)), { key: second.key, new: false, stored: 0 })
  t.ok((await restored(other, first.key, 'root')).equals(root))
  t.ok((await restored(other, second.key, 'root')).equals(later))
  t.ok((await restored(other, second.key, 'dä/ta')).equals(data))
  const { manifest } = await other.point(second.key)
  t.match(manifest, {
    machine: 'db %1',
    time: second.manifest.time,
    consistency: 'quiesced',
    complete: true,
    repository: other.id,
  })
  t.equal(manifest.disks[0]!.checkpoint, undefined, 'no bitmap there is of this checkpoint')
  t.match(manifest.attachments, [{ name: 'config', size: 11 }])

  await forget(other, second.key)
  const again = await done(importPoint(archive, two!, other))
  t.equal(again.new, true)
  t.not(again.key, second.key, 'one that was forgotten comes back as another')
  t.ok((await restored(other, again.key, 'root')).equals(later))
})

t.test('an export that does not come to its end leaves nothing, and one that would replace a file needs to be told', async t => {
  const before = readFileSync(path('one.zip'))
  await t.rejects(exported('one.zip', [second.key]), Busy)
  await exported('one.zip', [second.key], { force: true })
  t.notOk(readFileSync(path('one.zip')).equals(before))
  await t.rejects(exported('', [second.key]), InvalidParameter, 'a folder')
  const stop = new AbortController()
  const work = exportPoints({ repository, points: [first.key], path: path('stopped.zip'), signal: stop.signal })
  await work.next()
  stop.abort(new Cancelled('enough'))
  await t.rejects(done(work), Cancelled)
  const broken = new MemoryTarget()
  for (const [key, { body }] of target.store.objects)
    broken.store.set(key, key.startsWith('packs/') ? Buffer.from(body).fill(7, body.length >> 1) : body)
  const { Repository } = await import('../../src/repository/repository.ts')
  const damaged = await Repository.open(broken, { passphrase: 'x' })
  await t.rejects(done(exportPoints({ repository: damaged, points: [first.key], path: path('damaged.zip'), signal })), Damaged)
  t.same(
    readdirSync(folder).filter(name => /stopped|damaged|partial/.test(name)),
    [],
  )
})

t.test('names become parts of paths that every file system has, and stay different', async t => {
  t.equal(safePart('root-1.x_y'), 'root-1.x_y')
  t.equal(safePart('..'), '%2E.')
  t.equal(safePart('a\\b/c:d%é'), 'a%5Cb%2Fc%3Ad%25%C3%A9')
  fc.assert(
    fc.property(fc.string(), fc.string(), (one, other) => {
      const part = safePart(one)
      return /^(?!\.)[\w.%-]*$/.test(part) && (Buffer.from(one).equals(Buffer.from(other)) || part !== safePart(other))
    }),
  )
  t.equal(windowOf(1 << 30), 4 << 20)
  t.equal(windowOf(2 ** 40), 16 << 20)
  t.equal(windowOf(2 ** 50), 64 << 20)
})

t.test('a directory behind 4 GiB, and of more than 65,535 entries, is ZIP64', { skip: missing('unzip') }, async t => {
  const far = path('far.zip')
  {
    // The first entries lie before 4 GiB, the others behind, and there is a hole in between.
    await using file = await open(far, 'w')
    const zip = new ZipWriter(file, new Date(), 2 ** 32 - 100)
    for (const name of ['a', 'b', 'c']) await zip.add(stored(name, Buffer.from(name.repeat(100))))
    await zip.finish()
  }
  t.match(await attempt('unzip', ['-p', far, 'c']), { stdout: 'c'.repeat(100) })
  t.match(await run(PYTHON, ['-c', `import zipfile, sys; print(zipfile.ZipFile(sys.argv[1]).testzip())`, far]), /None/)
  await using zip = await ZipFile.open(far)
  t.equal((await zip.read('a', 100)).toString(), 'a'.repeat(100))
  t.equal((await zip.read('c', 100)).toString(), 'c'.repeat(100))

  // By a process that does nothing else: here each promise is watched, and there are hundreds of thousands.
  const many = path('many.zip')
  const script = `
import { open } from 'node:fs/promises'
import { Method, ZipWriter } from ${JSON.stringify(new URL('../../src/archive/zip-writer.js', import.meta.url).href)}
const parts = []
const write = async (bytes, offset, length) => (parts.push(Buffer.from(bytes.subarray(offset, offset + length))), { bytesWritten: length })
const zip = new ZipWriter({ write }, new Date())
for (let number = 0; number < 65_540; number++)
  await zip.add({ name: String(number), stored: Buffer.alloc(0), method: Method.stored, crc: 0, size: 0 })
await zip.finish()
await using file = await open(process.argv[1], 'w')
await file.write(Buffer.concat(parts))
`
  await run(process.execPath, ['--input-type=module', '-e', script, many])
  t.match(await run('zipinfo', ['-h', many]), /number of entries: 65540/)
  await using opened = await ZipFile.open(many)
  t.equal((await opened.read('65539', 0)).length, 0)
})

// --- hostile files ----------------------------------------------------------------------------------------------------------------

const stored = (name: string, plain: Buffer, more: object = {}) => ({
  name,
  stored: plain,
  method: Method.stored as number,
  crc: crc32(plain),
  size: plain.length,
  ...more,
})

async function zipOf(members: readonly ReturnType<typeof stored>[], change: (bytes: Buffer) => Buffer = bytes => bytes) {
  const name = path('hostile.zip')
  {
    await using file = await open(name, 'w')
    const zip = new ZipWriter(file, new Date())
    for (const member of members) await zip.add(member)
    await zip.finish()
  }
  writeFileSync(name, change(readFileSync(name)))
  return name
}

t.test('an archive that is cut short anywhere, or flipped anywhere, is refused or still restores what was written', async t => {
  const small = path('small.zip')
  const { key } = await pushDisks(repository, [{ name: 'd', source: sourceOf(diskContent(12 * CHUNK, 7)) }], { machine: 'small' })
  await exported('small.zip', [key])
  const whole = readFileSync(small)
  const attemptWith = async (bytes: Buffer, what: string) => {
    writeFileSync(path('changed.zip'), bytes)
    try {
      await using archive = await Archive.open(path('changed.zip'))
      const point = archive.points[0]!
      const disk = await archive.disk(point, point.manifest.disks[0]!)
      const sink = new BytesSink(Buffer.alloc(12 * CHUNK))
      await done(restoreArchived({ disk, sink }))
      // What is said in archive.json is guarded by the CRC of its entry.
      t.ok(sink.bytes.equals(diskContent(12 * CHUNK, 7)), what)
      return true
    } catch (error) {
      t.type(error, BadArchive, what)
      return false
    }
  }
  t.ok(await attemptWith(whole, 'whole'))
  for (const length of [0, 22, whole.length >> 1, whole.length - 1])
    t.notOk(await attemptWith(whole.subarray(0, length), `cut to ${length}`))
  const places = [0, 4, 14, 18, 26, 40, 100, whole.length >> 1]
  const directory = whole.readUInt32LE(whole.length - 6)
  for (let at = directory; at < whole.length; at += 37) places.push(at)
  for (const at of places) {
    const flipped = Buffer.from(whole)
    flipped[at]! ^= 0x55
    await attemptWith(flipped, `flipped at ${at}`)
  }
})

t.test('bombs, overlaps, wrong sizes, names that lead elsewhere and other tricks end with a typed error', async t => {
  const bomb = deflateRawSync(Buffer.alloc(64 * MB))
  const named = Buffer.from('x'.repeat(50))
  const cases: [what: string, file: () => Promise<string>, pattern: RegExp][] = [
    [
      'a bomb that says how large it is',
      () => zipOf([{ ...stored('e', bomb), method: Method.deflated, size: 64 * MB }]),
      /larger than it may be/,
    ],
    ['a bomb that says it is small', () => zipOf([{ ...stored('e', bomb), method: Method.deflated, size: 100 }]), /damaged/],
    ['plain bytes that are fewer than it says', () => zipOf([{ ...stored('e', named), size: 60 }]), /damaged/],
    ['another CRC', () => zipOf([{ ...stored('e', named), crc: 1 }]), /damaged/],
    ['a method nobody knows', () => zipOf([{ ...stored('e', named), method: 93 }]), /not supported/],
    ['no such entry', () => zipOf([stored('f', named)]), /no entry 'e'/],
    ['nothing at all', () => zipOf([]), /no entry 'e'/],
    ['..', () => zipOf([stored('../../e', named), stored('e', named)]), /Malicious/],
    ['two entries of one name', () => zipOf([stored('e', named), stored('e', named)]), /two entries/],
    [
      'entries that share bytes',
      () =>
        zipOf([stored('e', named), stored('f', named)], bytes => {
          const at = bytes.lastIndexOf(Buffer.from([0x50, 0x4b, 1, 2]))
          bytes.writeUInt32LE(10, at + 42)
          return bytes
        }),
      /reaches into the next/,
    ],
    [
      'an entry behind the end',
      () =>
        zipOf([stored('e', named)], bytes => {
          bytes.writeUInt32LE(0x7fffffff, bytes.lastIndexOf(Buffer.from([0x50, 0x4b, 1, 2])) + 42)
          return bytes
        }),
      /reaches into the next/,
    ],
    [
      'an encrypted entry',
      () =>
        zipOf([stored('e', named)], bytes => {
          bytes.writeUInt16LE(1, bytes.lastIndexOf(Buffer.from([0x50, 0x4b, 1, 2])) + 8)
          return bytes
        }),
      /encrypted/,
    ],
    [
      'a directory that says it has more',
      () =>
        zipOf([stored('e', named)], bytes => {
          bytes.writeUInt16LE(60_000, bytes.length - 14)
          bytes.writeUInt16LE(60_000, bytes.length - 12)
          return bytes
        }),
      /directory/,
    ],
    [
      'ZIP64 records that are not there',
      () =>
        zipOf([stored('e', named)], bytes => {
          bytes.writeUInt32LE(0xffffffff, bytes.length - 6)
          return bytes
        }),
      /ZIP64/,
    ],
    ['no ZIP file', async () => path('zeroes'), /does not end as a ZIP file does/],
  ]
  const fd = openSync(path('zeroes'), 'w')
  ftruncateSync(fd, 2 ** 40)
  closeSync(fd)
  for (const [what, file, pattern] of cases) {
    const read = async () => {
      await using zip = await ZipFile.open(await file())
      await zip.read('e', 1000)
    }
    const error = await read().catch((error: unknown) => error)
    t.type(error, BadArchive, what)
    t.match(error, { message: pattern }, what)
  }
  const prototype = await zipOf([stored('__proto__', named), stored('e', named)])
  await using zip = await ZipFile.open(prototype)
  t.ok((await zip.read('e', 1000)).equals(named), 'a name that means something to JavaScript')
  t.ok((await zip.read('__proto__', 1000)).equals(named))
  await t.rejects(zip.read('toString', 1000), BadArchive)
  await t.rejects(ZipFile.open(folder), InvalidParameter)
  await t.rejects(ZipFile.open(path('nowhere.zip')), { message: /No such file/ })
})

t.test('what an archive says of itself is not believed', async t => {
  const sha = 'a'.repeat(64)
  t.equal(parseList(`0 10 ${sha} e\n20 80 ${sha} f/g\n`, 100, 'list').length, 2)
  for (const text of [
    `0 10 ${sha} e`,
    `0 101 ${sha} e\n`,
    `0 0 ${sha} e\n`,
    `0 10 ${sha} e\n5 10 ${sha} e\n`,
    `0 10 ${sha.slice(1)} e\n`,
    `-1 10 ${sha} e\n`,
    `9999999999999999 1 ${sha} e\n`,
    `\n`,
    `0 10 ${sha} e\nx`,
  ])
    t.throws(() => parseList(text, 100, 'list'), BadArchive, JSON.stringify(text))
  t.throws(() => parseList(`0 99999999 ${sha} e\n`, 2 ** 40, 'list'), BadArchive, 'a piece that would need much memory')
  for (const index of ['{', '{}', '{"kind":"stillpoint-archive","format":2,"created":"2026-01-01T00:00:00Z","points":[]}'])
    await t.rejects(Archive.open(await zipOf([stored('archive.json', Buffer.from(index))])), BadArchive, index)

  // Disks of sizes that no disk has, lists that are not there, attachments that are not what they say.
  const { manifest } = first
  const archived = (change: object, more: readonly ReturnType<typeof stored>[] = []) => {
    const points = [{ folder: 'f', manifest: { ...manifest, ...change } }]
    const index = { kind: 'stillpoint-archive', format: 1, created: '2026-01-01T00:00:00Z', points }
    return zipOf([stored('archive.json', Buffer.from(JSON.stringify(index))), ...more])
  }
  const [disk] = manifest.disks
  const other = await newRepository(new MemoryTarget())
  const imported = async (file: string) => {
    await using archive = await Archive.open(file)
    return await done(importPoint(archive, archive.points[0]!, other))
  }
  const list = stored('f/root.list', Buffer.alloc(0))
  for (const [what, file] of [
    ['a size', await archived({ disks: [{ ...disk, size: Number.MAX_SAFE_INTEGER }] }, [list])],
    ['no list', await archived({ disks: [disk], attachments: [] })],
    ['no attachment', await archived({ disks: [disk] }, [list])],
    [
      'a large attachment',
      await archived({ disks: [disk], attachments: [{ ...manifest.attachments[0], size: 2 ** 40 }] }, [list]),
    ],
    ['a piece', await archived({ disks: [disk], attachments: [] }, [stored('f/root.list', Buffer.from(`0 9 ${sha} x\n`))])],
    [
      'other bytes',
      await archived({ disks: [disk], attachments: [] }, [
        stored('f/root.list', Buffer.from(`0 9 ${sha} x\n`)),
        stored('x', Buffer.from('123456789')),
      ]),
    ],
  ] as const)
    await t.rejects(imported(file), BadArchive, what)
  t.same(await other.pointKeys(), [], 'nothing of it is there')
  const twice = await archived({ disks: [disk, disk], attachments: [] }, [list])
  await t.rejects(imported(twice), InvalidParameter, 'two disks of one name')
})
