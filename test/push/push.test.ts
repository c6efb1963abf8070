// Push and restore over random histories, and each way in which a disk is read.

import { open } from 'node:fs/promises'
import fc from '../helpers/property.ts'
import t from 'tap'
import { NotFound } from '../../src/base/errors.ts'
import { native } from '../../src/base/native.ts'
import type { Range } from '../../src/base/ranges.ts'
import { Damaged, WrongKey } from '../../src/repository/faults.ts'
import { Repository } from '../../src/repository/repository.ts'
import { RepositoryReader } from '../../src/repository/reader.ts'
import { MemoryTarget } from '../helpers/memory-target.ts'
import { scratchFile } from '../helpers/open-context.ts'
import {
  BytesSink,
  BytesSource,
  bitmapOf,
  done,
  newRepository,
  opaque,
  pushDisks,
  restored,
  sealer,
  sourceOf,
} from '../helpers/push-point.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'
import { PushMemory, type PushShare } from '../../src/push/push-memory.ts'
import { push, type PushDisk } from '../../src/push/push.ts'
import { compareDisk } from '../../src/restore/compare-disk.ts'
import { restore } from '../../src/restore/restore.ts'

const CHUNK = 65536

/** A disk that fails what reads again what was released. */
class ForgetfulSource extends BytesSource {
  readonly released: { readonly offset: number; readonly length: number; readonly readsBefore: number }[] = []

  release = async ({ offset, length }: { offset: number; length: number }) => {
    this.#check(offset, length)
    this.released.push({ offset, length, readsBefore: this.reads.length })
  }

  override async read(offset: number, into: Buffer) {
    this.#check(offset, into.length)
    await super.read(offset, into)
  }

  checkAllReleased() {
    const sum = this.released.reduce((sum, { length }) => sum + length, 0)
    if (sum !== this.size) throw new Error(`${sum} of ${this.size} bytes are released`)
  }

  #check(offset: number, length: number) {
    const gone = this.released.find(one => one.offset < offset + length && offset < one.offset + one.length)
    if (gone) throw new Error(`${length} bytes at ${offset} are wanted, and ${gone.length} at ${gone.offset} have been released`)
  }
}

for (const passphrase of [undefined, 'correct horse']) {
  t.test(`a full push ${passphrase ? 'into an encrypted repository ' : ''}restores bit for bit, whatever the size`, async t => {
    const target = new MemoryTarget()
    const repository = await newRepository(target, { passphrase })
    for (const size of [0, 1, CHUNK - 1, CHUNK, 5 * CHUNK + 7, 300 * CHUNK + 512]) {
      const bytes = diskContent(size, size)
      const { key, manifest } = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes) }], { machine: `vm${size}` })
      t.equal(manifest.disks[0]!.read.mode, 'full')
      t.ok((await restored(repository, key, 'root')).equals(bytes), `${size} bytes`)
    }
    t.same(await sessionsOf(target), [], 'no session is left')
    if (!passphrase) return
    const plain = diskContent(5 * CHUNK + 7, 5 * CHUNK + 7).subarray(0, 64)
    t.ok(
      [...target.store.objects.values()].every(({ body }) => !body.includes(plain)),
      'nothing of the disk is there in the clear',
    )
    await t.rejects(Repository.open(target, { passphrase: 'wrong' }), WrongKey)
    await t.rejects(Repository.open(target), WrongKey)
    await t.rejects(Repository.open(new MemoryTarget()), { name: 'NoRepository' })
  })
}

const sessionsOf = async (target: MemoryTarget) => Array.fromAsync(target.list('sessions/'))

t.test('a bitmap that lies is caught, and the disk compared instead', async t => {
  const repository = await newRepository(new MemoryTarget())
  const bytes = Buffer.alloc(800 * CHUNK)
  bytes.set(randomBytes(40 * CHUNK, 1), 700 * CHUNK) // a mostly empty disk
  await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes), checkpoint: 'c1' }])
  const changed = Buffer.from(bytes)
  for (let chunk = 700; chunk < 740; chunk++) changed[chunk * CHUNK + 5]! ^= 1
  const result = await pushDisks(repository, [
    { name: 'root', source: sourceOf(changed), changes: { bitmap: bitmapOf([]), since: 'c1' } },
  ])
  t.match(result.manifest.disks[0]!.read, { mode: 'compare', why: /checkpoint 'c1' is wrong: the bytes at \d+ have changed/ })
  t.match(result.broken, [{ disk: 'root', checkpoint: 'c1' }])
  t.ok((await restored(repository, result.key, 'root')).equals(changed))
})

t.test('without a bitmap, or with one that fits nothing here, the disk is compared and the reason kept', async t => {
  const repository = await newRepository(new MemoryTarget())
  const bytes = diskContent(50 * CHUNK, 1)
  await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes), checkpoint: 'c1' }])
  for (const [changes, why] of [
    [undefined, 'no bitmap was given'],
    [{ missing: "bitmap 'c1' was lost in a crash" }, "bitmap 'c1' was lost in a crash"],
    [{ bitmap: bitmapOf([]), since: 'c0' }, "the repository has no restore point of checkpoint 'c0'"],
    [
      ['x3', 'x2', 'x1'].map(since => ({ bitmap: bitmapOf([]), since })),
      "the repository has no restore point of checkpoint 'x3', nor of the 2 before it that the machine has",
    ],
  ] as const) {
    bytes.fill(9, 3 * CHUNK, 4 * CHUNK)
    const { manifest, key } = await pushDisks(repository, [{ name: 'root', source: opaque(bytes), changes }])
    t.same(manifest.disks[0]!.read, { mode: 'compare', why })
    t.ok((await restored(repository, key, 'root')).equals(bytes))
  }
  const { manifest } = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes) }])
  t.equal(manifest.disks[0]!.stored, 0, 'nothing new, nothing stored')
})

t.test('a backup that finds a restore point of a later time says that a clock was wrong', async t => {
  const said: string[] = []
  const target = new MemoryTarget()
  await newRepository(target)
  const repository = await Repository.open(target, { warn: message => void said.push(message) })
  const at = (time: number) =>
    pushDisks(repository, [{ name: 'root', source: sourceOf(diskContent(CHUNK, 1)) }], { time: new Date(time) })
  await at(1e12)
  const later = await at(2e12)
  t.same(said, [])
  await at(1.5e12)
  t.equal(said.length, 1)
  t.match(said[0], new RegExp(`${later.key} bears a later time than .*so a clock was or is wrong`))
})

t.test('several disks are one restore point, and one that fails leaves none', async t => {
  const target = new MemoryTarget()
  const repository = await newRepository(target)
  const [a, b] = [diskContent(10 * CHUNK, 1), diskContent(7 * CHUNK + 5, 2)]
  const { key, manifest } = await pushDisks(
    repository,
    [
      { name: 'a', source: sourceOf(a) },
      { name: 'b', source: sourceOf(b) },
    ],
    { attachments: [{ name: 'machine.xml', bytes: Buffer.from('<domain/>') }], consistency: 'quiesced' },
  )
  t.match(manifest, { machine: 'vm', consistency: 'quiesced', complete: true })
  t.ok((await restored(repository, key, 'a')).equals(a))
  t.ok((await restored(repository, key, 'b')).equals(b))
  {
    await using reader = await RepositoryReader.begin(repository, [key], { beatMs: 0 })
    t.equal(String(await reader.attachment(manifest.attachments[0]!.id)), '<domain/>')
  }
  const before = await repository.pointKeys()
  const broken = Object.assign(sourceOf(b), { read: () => Promise.reject(new Error('bad sector')) })
  await t.rejects(
    pushDisks(repository, [
      { name: 'a', source: sourceOf(a) },
      { name: 'b', source: broken },
    ]),
    { message: 'bad sector' },
  )
  t.same(await repository.pointKeys(), before)
  t.same(await sessionsOf(target), [], 'and no session')
})

t.test('a push that is called off leaves nothing, and what it had uploaded is not uploaded again', async t => {
  const target = new MemoryTarget()
  const repository = await newRepository(target)
  const source = sourceOf(randomBytes(100 * CHUNK, 1))
  const work = push({
    repository,
    machine: 'vm',
    time: new Date(),
    disks: [{ name: 'root', source }],
    packSize: 1 << 20,
    sealer,
    beatMs: 0,
  })
  await work.next()
  await work.return(undefined as never)
  t.same(await sessionsOf(target), [])
  t.same(await repository.pointKeys(), [])

  const stop = new AbortController()
  let packs = 0
  target.after = ({ op, key }) => {
    if (op === 'put' && key.startsWith('packs/') && ++packs === 3) stop.abort(new Error('enough'))
  }
  await t.rejects(pushDisks(repository, [{ name: 'root', source }], { signal: stop.signal }), { message: 'enough' })
  t.same(await sessionsOf(target), [])
  t.same(await repository.pointKeys(), [])
  target.after = () => {}
  const { key } = await pushDisks(repository, [{ name: 'root', source }])
  t.ok((await restored(repository, key, 'root')).equals(source.bytes))
})

t.test('restore points of random histories restore as the model says', async () => {
  const change = fc.record({
    at: fc.double({ min: 0, max: 1, noNaN: true }),
    length: fc.oneof(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 1, max: 20 * CHUNK })),
    kind: fc.constantFrom('write', 'zero', 'lose bitmap', 'grow', 'shrink', 'new disk'),
    seed: fc.nat(),
  })
  const sizes = fc.constantFrom(1, 3 * CHUNK, 5 * CHUNK + 9, 17 * CHUNK, 255 * CHUNK + 77)
  const rounds = fc.array(fc.array(change, { maxLength: 6 }), { minLength: 1, maxLength: 5 })
  await fc.assert(
    fc.asyncProperty(sizes, fc.boolean(), rounds, async (size, encrypted, rounds) => {
      const repository = await newRepository(new MemoryTarget(), { passphrase: encrypted ? 'x' : undefined })
      let disk = diskContent(size, size)
      let dirty: { offset: number; length: number }[] | undefined
      let name = 'disk'
      const kept: { key: string; name: string; bytes: Buffer }[] = []
      for (const [round, changes] of [[], ...rounds].entries()) {
        for (const { at, length: wanted, kind, seed } of changes) {
          const offset = Math.floor(at * (disk.length - 1))
          const length = Math.min(wanted, disk.length - offset)
          if (kind === 'write') disk.set(randomBytes(length, seed), offset)
          if (kind === 'zero') disk.fill(0, offset, offset + length)
          if (kind === 'write' || kind === 'zero') dirty?.push({ offset, length })
          if (kind === 'lose bitmap') dirty = undefined
          if (kind === 'grow') {
            const added = randomBytes(Math.min(wanted, 3 * CHUNK), seed)
            dirty?.push({ offset: disk.length, length: added.length }) // as a bitmap does
            disk = Buffer.concat([disk, added])
          }
          if (kind === 'shrink') disk = Buffer.from(disk.subarray(0, Math.max(1, disk.length - wanted)))
          if (kind === 'new disk') name = `disk${seed % 3}`
        }
        const changesSince = dirty ? { bitmap: bitmapOf(dirty), since: `c${round - 1}` } : { missing: 'lost' }
        const source = new ForgetfulSource(Buffer.from(disk))
        const { release } = source
        const { key } = await pushDisks(repository, [{ name, source, changes: changesSince, checkpoint: `c${round}`, release }])
        source.checkAllReleased()
        kept.push({ key, name, bytes: Buffer.from(disk) })
        dirty = []
      }
      for (const { key, name, bytes } of kept)
        if (!(await restored(repository, key, name)).equals(bytes)) throw new Error(`${key} is not as it was`)
    }),
    { numRuns: 10, endOnFailure: true },
  )
})

t.test(
  'threads read the disk by themselves; what they cannot have at once, and what was written meanwhile, is read for them',
  { skip: !native && 'needs koffi' },
  async t => {
    await using stack = new AsyncDisposableStack()
    for (const passphrase of [undefined, 'x']) {
      const bytes = diskContent(700 * CHUNK + 77, 5)
      const fd = stack.use(await open(await scratchFile(Buffer.concat([bytes, Buffer.alloc(100 * CHUNK, 1)]), stack))).fd
      const source = opaque(bytes)
      const asked = { good: 0, overtaken: 0, 'behind the end': 0 }
      let using = 0
      let count = 0
      const readPlace = ({ offset, length }: Range) => {
        using++
        const kind = (['good', 'overtaken', 'good', 'behind the end'] as const)[count++ % 4]!
        asked[kind]++
        const at = kind === 'good' ? offset : kind === 'overtaken' ? 100 * CHUNK : 800 * CHUNK - length + 100
        return { fd, at, isGood: () => kind === 'good', [Symbol.dispose]: () => void using-- }
      }
      const disk = { size: source.size, read: source.read.bind(source), extents: source.extents.bind(source), readPlace }
      const repository = await newRepository(new MemoryTarget(), { passphrase })
      const first = await pushDisks(repository, [{ name: 'root', source: disk, checkpoint: 'one' }])
      bytes.set(randomBytes(300, 1), 9 * CHUNK - 5)
      const { key } = await pushDisks(repository, [{ name: 'root', source: disk, changes: { missing: 'lost' } }])
      t.equal(using, 0)
      t.ok(
        Object.values(asked).every(times => times > 1),
        JSON.stringify(asked),
      )
      t.ok(source.reads.length > 0)
      t.ok(first.key !== key && (await restored(repository, key, 'root')).equals(bytes))
    }
  },
)

/** A disk of holes, with a byte that is not zero at each mark. */
const sparse = (size: number, marks: readonly number[]) => ({
  size,
  async read(offset: number, into: Buffer) {
    into.fill(0)
    for (const mark of marks) if (mark >= offset && mark < offset + into.length) into[mark - offset] = 1 + (mark % 251)
  },
  async *extents({ offset, length }: { offset: number; length: number }) {
    let at = offset
    for (const mark of [...marks].sort((a, b) => a - b)) {
      if (mark < at || mark >= offset + length) continue
      if (mark > at) yield { offset: at, length: mark - at, allocated: false, zero: true }
      yield { offset: mark, length: 1, allocated: true, zero: false }
      at = mark + 1
    }
    if (at < offset + length) yield { offset: at, length: offset + length - at, allocated: false, zero: true }
  },
})

t.test('a tree of more than two levels grows and shrinks with its disk', async t => {
  // 65536 chunks of 64 KiB are 4 GiB: mostly holes, which cost nothing.
  const repository = await newRepository(new MemoryTarget())
  const GiB = 2 ** 30
  const lookAt = async (key: string, other: ReturnType<typeof sparse>) => {
    await using reader = await RepositoryReader.begin(repository, [key], { beatMs: 0 })
    const disk = reader.points[0]!.manifest.disks[0]!
    const seen: number[] = []
    const sink = {
      size: disk.size,
      write: async (offset: number, data: Buffer) => void seen.push(offset + data.findIndex(byte => byte !== 0)),
      zero: async () => {},
      flush: async () => {},
    }
    await done(restore({ reader, disk, sink, sealer }))
    const { differs } = await done(compareDisk({ reader, disk, other, sealer }))
    return { marks: seen.sort((a, b) => a - b), differs }
  }
  let marks = [5, 3 * GiB]
  for (const [size, added] of [
    [3.5 * GiB, 140_000],
    [1500 * GiB, 1400 * GiB + 3], // three levels
    [1500 * GiB, 4 * GiB],
    [20 * GiB, 19 * GiB], // one less, and what was behind it is gone
    [1200 * GiB, 30 * GiB],
    [CHUNK * 2, 70_000],
  ] as const) {
    marks = [...marks.filter(mark => mark < size), added]
    const source = sparse(size, marks)
    for (const how of ['compare', 'bitmap'] as const) {
      const [last] = (await repository.pointKeys()).slice(-1)
      const checkpoint = `c${size}${how}`
      const parent = last ? (await repository.point(last)).manifest.disks[0]!.checkpoint : undefined
      const changes = how === 'bitmap' && parent ? { bitmap: bitmapOf([{ offset: added, length: 1 }]), since: parent } : undefined
      const start = performance.now()
      const { key, manifest } = await pushDisks(repository, [{ name: 'root', source, changes, checkpoint }])
      t.ok(performance.now() - start < 5000, `${size} bytes in ${Math.round(performance.now() - start)} ms`)
      if (changes) t.equal(manifest.disks[0]!.read.mode, 'bitmap')
      const marked = [...marks].sort((a, b) => a - b)
      t.same(await lookAt(key, source), { marks: marked, differs: [] }, `${size} ${how}`)
      t.ok(performance.now() - start < 5000, 'holes cost nothing where it is looked at, either')
      const more = sparse(size + CHUNK, [...marks, added + CHUNK])
      const differs = [{ offset: added + CHUNK - (added % CHUNK), length: CHUNK }]
      t.same((await lookAt(key, more)).differs, differs, 'and what is there alone is found')
    }
  }
})

t.test('all of a disk is given back by the end, nothing that is read again, and what is clean at once', async t => {
  const target = new MemoryTarget()
  const repository = await newRepository(target)
  const bytes = diskContent(600 * CHUNK + 9, 1)
  const pushed = async (source: ForgetfulSource, changes?: PushDisk['changes'], checkpoint?: string) => {
    const { key, manifest } = await pushDisks(repository, [
      { name: 'root', source, changes, checkpoint, release: source.release },
    ])
    source.checkAllReleased()
    t.ok((await restored(repository, key, 'root')).equals(source.bytes))
    return manifest.disks[0]!.read
  }
  await pushed(new ForgetfulSource(bytes), undefined, 'one')
  const changed = Buffer.from(bytes)
  changed.set(randomBytes(CHUNK, 2), 300 * CHUNK)
  const bitmap = bitmapOf([{ offset: 300 * CHUNK, length: CHUNK }])
  const incremental = new ForgetfulSource(changed)
  t.match(await pushed(incremental, { bitmap, since: 'one' }, 'two'), { mode: 'bitmap' })
  const outside = incremental.released.findLast(({ offset }) => offset > 300 * CHUNK)
  t.ok(outside && outside.readsBefore < 40, 'behind what changed: when the sample was read')

  const lying = { bitmap: bitmapOf([]), since: 'one' }
  const other = diskContent(600 * CHUNK + 9, 3)
  t.match(await pushed(new ForgetfulSource(other), lying, 'three'), { mode: 'compare', why: /is wrong/ })

  const broken = Object.assign(new ForgetfulSource(other), { read: () => Promise.reject(new Damaged('a bad node')) })
  broken.release = async range => void broken.released.push({ ...range, readsBefore: 0 })
  const late = pushDisks(repository, [
    { name: 'root', source: broken, changes: { missing: 'lost' }, release: range => broken.release(range) },
  ])
  await t.rejects(late, /a bad node/)

  // Nobody has been told yet that they are not there, so whoever restores may still look for them.
  const nodes = (await Array.fromAsync(target.list('meta/'))).map(({ key }) => key)
  await target.delete(nodes)
  const last = new ForgetfulSource(other)
  const { manifest } = await pushDisks(repository, [{ name: 'root', source: last, release: last.release }])
  t.match(manifest.disks[0]!.read, { mode: 'full', why: /is damaged/ })
  last.checkAllReleased()
})

t.test('several pushes share the memory there is: the first have most, and none waits', async t => {
  const memory = new PushMemory()
  const shares: PushShare[] = []
  for (let count = 0; count < 8; count++) shares.push(await memory.take())
  const sizes = shares.map(share => share.memory >> 20)
  t.same(sizes, [64, 32, 16, 16, 16, 16, 16, 16])
  t.ok(shares.every(({ memory, packSize }) => packSize * 3 <= memory))
  for (const share of shares) share[Symbol.dispose]()
  using again = await memory.take()
  t.equal(again.memory >> 20, 64)
})

t.test('pushes at once share their threads, and each comes to its end', async t => {
  const pushed = [1, 2, 3].map(async number => {
    const repository = await newRepository(new MemoryTarget())
    const bytes = randomBytes(40 * CHUNK, number)
    const { key } = await pushDisks(repository, [{ name: 'root', source: opaque(bytes) }])
    return (await restored(repository, key, 'root')).equals(bytes)
  })
  t.same(await Promise.all(pushed), [true, true, true])
})

t.test('a restore in place writes only what differs', async t => {
  const repository = await newRepository(new MemoryTarget())
  const bytes = diskContent(100 * CHUNK + 9, 1)
  const { key, manifest } = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes) }])
  const sink = new BytesSink(Buffer.concat([bytes, Buffer.from('behind')]))
  const wrong = [...Array(100).keys()].filter(chunk => bytes[chunk * CHUNK] !== 0).slice(3, 6)
  for (const chunk of wrong) sink.bytes[chunk * CHUNK + 77]! ^= 1
  await using reader = await RepositoryReader.begin(repository, [key], { beatMs: 0 })
  const progress = await done(restore({ reader, disk: manifest.disks[0]!, sink, inPlace: sink, sealer }))
  t.equal(progress.written, wrong.length * CHUNK)
  t.ok(sink.bytes.equals(Buffer.concat([bytes, Buffer.from('behind')])))
})

t.test('a restore says what is damaged, and restores the rest when asked to', async t => {
  const target = new MemoryTarget()
  const repository = await newRepository(target)
  const bytes = randomBytes(64 * CHUNK, 1)
  const { key, manifest } = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes) }])
  const packs = (await Array.fromAsync(target.list('packs/'))).map(({ key }) => key)
  const flipped = Buffer.from((await target.get(packs[0]!)).body)
  flipped[100_000]! ^= 1
  target.store.set(packs[0]!, flipped)
  await target.delete([packs[1]!])
  await t.rejects(restored(repository, key, 'root'), Damaged)

  const lost: { offset: number; length: number }[] = []
  const found = await restored(repository, key, 'root', { damaged: range => lost.push(range) })
  t.ok(lost.length > 2 && lost.length < 40, `${lost.length} chunks`)
  for (const { offset, length } of lost) found.set(bytes.subarray(offset, offset + length), offset)
  t.ok(found.equals(bytes), 'everything else is there')
  t.equal(manifest.disks.length, 1)
})

t.test('a restore point that is not there is not found', async t => {
  const repository = await newRepository(new MemoryTarget())
  await t.rejects(RepositoryReader.begin(repository, ['points/vm/20260101T000000000Z-00000000']), NotFound)
})

t.test('a restore that loses what it wrote fails, though only the flush beside it was told so', async t => {
  const repository = await newRepository(new MemoryTarget())
  const bytes = Buffer.alloc(80 << 20, randomBytes(CHUNK, 3)) // one chunk, many times
  const { key, manifest } = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes) }])
  await using reader = await RepositoryReader.begin(repository, [key], { beatMs: 0 })
  let flushes = 0
  class LosingSink extends BytesSink {
    override async flush() {
      if (flushes++ === 0) throw new Error('EIO: what was written is lost')
    }
  }
  const sink = new LosingSink(Buffer.alloc(bytes.length))
  await t.rejects(done(restore({ reader, disk: manifest.disks[0]!, sink, sinkIsZero: true, sealer })), { message: /is lost/ })
  t.equal(flushes, 1, 'it was flushed before the end')
})
