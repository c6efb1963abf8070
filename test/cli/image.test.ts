// stillpoint image beside qemu-img: the same images, both programs, and what they say is compared.

import { copyFileSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import t from 'tap'
import { CliWorker } from '../helpers/cli-worker.ts'
import { imageZoo, qemuIo as io } from '../helpers/image-zoo.ts'
import { scratchFolder } from '../helpers/qemu.ts'
import { attempt, missing, run } from '../helpers/tools.ts'

const skip = missing('qemu-img', 'qemu-io')
const MiB = 1 << 20

const stack = new AsyncDisposableStack()
t.teardown(() => stack.disposeAsync())
const worker = stack.use(new CliWorker())
const folder = await scratchFolder(stack)
const ours = (...args: string[]) => worker.run('image', ...args)
const theirs = (...args: string[]) => attempt('qemu-img', args)
const images = skip ? [] : await imageZoo(folder)

const isExternal = (image: string) => image.endsWith('data.qcow2')
/** We count what an external data file takes up, as QEMU does when it has opened it. */
const sizes = (image: string, text: string): unknown =>
  JSON.parse(text, (key, value: unknown) => (key === 'actual-size' && isExternal(image) ? 'of both files' : value))

/** The order within "Format specific information" is that of a hash table. */
const lines = (text: string) => text.split('\n').toSorted()

t.test('info says what qemu-img info says, in JSON and to people', { skip }, async t => {
  for (const image of images) {
    for (const args of [[], ['--backing-chain'], ['-U']]) {
      const [mine, qemu] = await Promise.all([
        ours('info', ...args, '--output=json', image),
        theirs('info', ...args, '--output=json', image),
      ])
      t.same(sizes(image, mine.stdout), sizes(image, qemu.stdout), `${image} ${args.join(' ')}`)
    }
    const [mine, qemu] = await Promise.all([ours('info', '--backing-chain', image), theirs('info', '--backing-chain', image)])
    if (!isExternal(image)) t.same(lines(mine.stdout), lines(qemu.stdout))
  }
  const { stdout } = await ours('info', '--json', `${folder}/plain.raw`)
  t.equal(stdout.split('\n').length, 2, '--json is one line')
})

interface Entry {
  start: number
  length: number
  depth: number
  zero: boolean
  present: boolean
  data: boolean
  offset?: number
}

t.test('map says what qemu-img map says', { skip }, async t => {
  for (const image of images) {
    for (const args of [[], ['--start-offset=70k', '--max-length=3M']]) {
      const [mine, qemu] = await Promise.all([
        ours('map', ...args, '--output=json', image),
        theirs('map', ...args, '--output=json', image),
      ])
      // Of clusters that are there and read as zeroes we do not say where they are; and we see holes in data where QEMU does not look.
      const known = (entries: Entry[]) =>
        merged(entries.map(({ offset, ...entry }) => (entry.data ? { ...entry, offset, zero: false } : entry)))
      t.same(known(JSON.parse(mine.stdout) as Entry[]), known(JSON.parse(qemu.stdout) as Entry[]), `${image} ${args.join(' ')}`)
    }
    const [mine, qemu] = await Promise.all([ours('map', image), theirs('map', image)])
    t.equal(mine.code, qemu.code)
    if (/plain|overlay/.test(image)) t.match(qemu.stdout, mine.stdout.split('\n')[1]!)
  }
})

/** Without their places neighbours may be alike. */
function merged(entries: Entry[]) {
  const all: Entry[] = []
  for (const entry of entries) {
    const last = all.at(-1)
    const alike = last && (['depth', 'zero', 'present', 'data'] as const).every(key => last[key] === entry[key])
    const goesOn = last && (last.offset === undefined ? entry.offset === undefined : last.offset + last.length === entry.offset)
    if (alike && goesOn) last.length += entry.length
    else all.push({ ...entry })
  }
  return all
}

t.test('check finds what qemu-img check finds, with its exit codes, and its repairs hold', { skip }, async t => {
  const compareChecks = async (image: string, what: string) => {
    const [mine, qemu] = await Promise.all([ours('check', '--output=json', image), theirs('check', '--output=json', image)])
    t.equal(mine.code, qemu.code, `${what}: the exit code`)
    t.same(JSON.parse(mine.stdout), JSON.parse(qemu.stdout), what)
    return mine.code
  }
  for (const image of images.slice(1)) t.equal(await compareChecks(image, image), 0)
  const plain = readFileSync(`${folder}/plain.qcow2`)
  const damage: Record<string, (bytes: Buffer) => void> = {
    'a leak': bytes => bytes.writeUInt16BE(1, 2 * 65536 + 2 * 30),
    'a cluster that is not counted': bytes => bytes.writeUInt16BE(0, 2 * 65536 + 2 * 5),
    both: bytes => {
      bytes.writeUInt16BE(1, 2 * 65536 + 2 * 30)
      bytes.writeUInt16BE(0, 2 * 65536 + 2 * 5)
    },
  }
  for (const [what, harm] of Object.entries(damage)) {
    const image = `${folder}/damaged.qcow2`
    const bytes = Buffer.from(plain)
    harm(bytes)
    writeFileSync(image, bytes)
    truncateSync(image, 31 * 65536)
    const code = await compareChecks(image, what)
    t.equal(code, what === 'a leak' ? 3 : 2)
    const repaired = await ours('check', '-r', what === 'a leak' ? 'leaks' : 'all', image)
    t.equal(repaired.code, 0, repaired.stdout + repaired.stderr)
    t.match(repaired.stdout, /The following inconsistencies were found and repaired:[^]*No errors were found on the image/)
    t.equal((await theirs('check', image)).code, 0, 'qemu-img finds nothing any more')
    t.equal((await theirs('compare', image, `${folder}/plain.qcow2`)).code, 0)
  }
  const mine = await ours('check', `${folder}/plain.raw`)
  t.equal(mine.code, 63, mine.stderr)
  const raw = await theirs('check', `${folder}/plain.raw`)
  t.equal(raw.code, 63, raw.stderr)
  t.equal((await ours('check', `${folder}/nope`)).code, 1, 'what is not there')
})

t.test('compare answers as qemu-img compare does', { skip }, async t => {
  const [raw, plain] = images as [string, string]
  const copy = `${folder}/copy`
  await run('qemu-img', ['convert', '-O', 'raw', plain, `${copy}.raw`])
  copyFileSync(`${copy}.raw`, `${copy}2.raw`)
  truncateSync(`${copy}2.raw`, 5 * MiB)
  copyFileSync(`${copy}.raw`, `${copy}3.raw`)
  await io(`${copy}3.raw`, 'write -P 8 3000k 1k')
  copyFileSync(`${copy}2.raw`, `${copy}4.raw`)
  await io(`${copy}4.raw`, 'write -P 8 4500k 1k')
  for (const args of [
    [plain, `${copy}.raw`],
    [`${copy}.raw`, plain],
    [plain, `${copy}2.raw`],
    ['-s', plain, `${copy}2.raw`],
    [plain, `${copy}3.raw`],
    [plain, `${copy}4.raw`],
    [`${copy}4.raw`, plain],
    [raw, plain],
    ['-s', plain, plain],
    ['-q', plain, raw],
    [plain, `${folder}/nope`],
    ['-f', 'raw', '-F', 'raw', plain, plain],
  ]) {
    const [mine, qemu] = await Promise.all([ours('compare', ...args), theirs('compare', ...args)])
    t.equal(mine.code, qemu.code, args.join(' '))
    t.equal(mine.stdout, qemu.stdout, args.join(' '))
  }
})

t.test('an image that is damaged is named, in the words of qemu-img', { skip }, async t => {
  const image = `${folder}/damaged.qcow2`
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, '1M'])
  const bytes = readFileSync(image)
  const firstExtension = bytes.readUInt32BE(100)
  bytes.writeUInt32BE(0x7fff_ffff, firstExtension + 4)
  writeFileSync(image, bytes)
  const said = `Could not open '${image}': Header extension too large\n`
  for (const command of ['info', 'check', 'map']) {
    const [mine, qemu] = await Promise.all([ours(command, image), theirs(command, image)])
    t.equal(mine.stderr, `stillpoint: ${said}`)
    t.equal(qemu.stderr, `qemu-img: ${said}`)
  }
})
