// What we read of images that qemu-img made, over a matrix of the format's features; qemu-img is the judge.

import { readFileSync, writeFileSync } from 'node:fs'
import { basename } from 'node:path'
import pLimit from 'p-limit'
import t from 'tap'
import type { Extent } from '../../../src/block/driver.ts'
import { checkExtents, readAt } from '../../helpers/block-node-suite.ts'
import { openImage } from '../../helpers/image-chain.ts'
import { missing, qemuCheck, qemuImg, qemuIo, qemuIoOver, scratchFolder } from '../../helpers/qemu.ts'
import { diskContent, randomBytes } from '../../helpers/random-bytes.ts'

const KiB = 1024
const MiB = 1 << 20

interface Case {
  readonly options: string
  readonly size: number
  /** The size of a backing file, or none. */
  readonly backing?: number
  readonly backingFormat?: 'raw' | 'qcow2'
  readonly compressed?: boolean
  readonly dataFile?: 'raw' | 'plain'
}

/** Made by one qemu-img convert each: every cluster size with every refcount width, preallocation and compression. */
function converted(): Case[] {
  return CLUSTERS.flatMap((cluster, index) => {
    const size = sizeFor(cluster, index)
    const options = `cluster_size=${cluster}`
    return [
      ...['0.10', '1.1'].flatMap(compat =>
        [false, true].map(compressed => ({ options: `${options},compat=${compat}`, size, compressed })),
      ),
      ...[1, 2, 4, 8, 32, 64].map(bits => ({ options: `${options},refcount_bits=${bits}`, size, compressed: bits > 8 })),
      ...['metadata', 'falloc', 'full'].map(mode => ({ options: `${options},preallocation=${mode}`, size })),
      { options: `${options},compression_type=zstd`, size, compressed: true },
      { options: `${options},lazy_refcounts=on`, size },
      ...(cluster < 16 * KiB
        ? []
        : [false, true].map(compressed => ({ options: `${options},extended_l2=on`, size, compressed }))),
      ...(cluster < 16 * KiB ? [] : [{ options: `${options},extended_l2=on,compression_type=zstd`, size, compressed: true }]),
    ]
  })
}

/** Made by qemu-img create and written by qemu-io: zero clusters of both kinds, discarded ones, backing files of every length, data files. */
function scribbled(): Case[] {
  return CLUSTERS.flatMap((cluster, index) => {
    const size = sizeFor(cluster, index)
    const options = `cluster_size=${cluster}`
    const backing: Pick<Case, 'backing' | 'backingFormat'>[] = [
      { backing: size, backingFormat: 'raw' },
      { backing: Math.floor(size / 1024) * 512, backingFormat: 'qcow2' },
      { backing: size + 3 * cluster, backingFormat: 'raw' },
    ]
    return [
      { options: `${options},compat=0.10`, size, ...backing[index % 3], compressed: true },
      { options, size, compressed: true },
      ...backing.map(one => ({ options, size, ...one })),
      { options, size, dataFile: index % 2 ? ('plain' as const) : ('raw' as const) },
      ...(cluster < 16 * KiB
        ? []
        : backing.map(one => ({ options: `${options},extended_l2=on`, size, ...one, compressed: true }))),
      ...(cluster < 16 * KiB ? [] : [{ options: `${options},extended_l2=on`, size, dataFile: 'plain' as const }]),
    ]
  })
}

const CLUSTERS = [512, KiB, 2 * KiB, 4 * KiB, 8 * KiB, 16 * KiB, 32 * KiB, 64 * KiB, 256 * KiB, 2 * MiB]

/** Some clusters, and a last one that is whole or not. */
const sizeFor = (cluster: number, index: number) => Math.min(40 * cluster, 3 * MiB) + [0, 512, 1536][index % 3]!

/** Writes, zeroes and discards all over the disk, by qemu-io: whole clusters, parts of them and runs. */
function scribble(size: number, cluster: number, { compressed = false, seed = 1 } = {}) {
  const commands: string[] = []
  const at = (part: number) => Math.floor((part * size) / 100 / 512) * 512
  const length = (offset: number, bytes: number) => Math.max(0, Math.min(bytes, size - offset))
  const add = (command: string, offset: number, bytes: number) => {
    if (length(offset, bytes) > 0) commands.push(`${command} ${offset} ${length(offset, bytes)}`)
  }
  if (compressed)
    for (let index = 0; index < 8; index += 1 + (index % 2)) add(`write -c -P ${17 + index + seed}`, index * cluster, cluster)
  add(`write -P ${0x31 + seed}`, at(30), 512)
  add(`write -P ${0x41 + seed}`, at(40), 3 * cluster)
  add(`write -P ${0x51 + seed}`, at(60), cluster + 512)
  add('write -z', Math.ceil(at(42) / cluster) * cluster, cluster)
  add('write -z -u', Math.ceil(at(60) / cluster) * cluster, cluster)
  add('write -z', at(75), 2 * cluster + 512)
  add('discard', Math.ceil(at(44) / cluster) * cluster, cluster)
  add(`write -P ${0x61 + seed}`, size - 512, 512)
  return commands
}

t.test('every image that qemu-img makes reads as qemu-img converts it', { skip: missing('qemu-img', 'qemu-io') }, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const limit = pLimit(4)
  const made = [
    ...converted().map((one, index) => ({ one, path: `${folder}/c${index}`, scribbles: [] as string[] })),
    ...scribbled().map((one, index) => ({ one, path: `${folder}/s${index}`, scribbles: scribbles(one, index) })),
  ]
  t.ok(made.length >= 200, `${made.length} images`)
  await Promise.all(
    made.map(({ one, path, scribbles }, index) => limit(() => (scribbles.length > 0 ? create : convert)(path, one, index))),
  )
  await qemuIoOver(made.map(({ path, scribbles }) => ({ image: `${path}.qcow2`, commands: scribbles })))
  // One program converts them all, one behind the other, so that it starts once.
  await qemuImg('convert', '-O', 'raw', ...made.map(({ path }) => `${path}.qcow2`), `${folder}/all.raw`)
  const all = readFileSync(`${folder}/all.raw`)
  const verdicts: string[] = []
  let at = 0
  for (const { one, path } of made) {
    verdicts.push(await compare(path, JSON.stringify(one), all.subarray(at, at + one.size)))
    at += one.size
  }
  t.equal(at, all.length)
  t.same(
    verdicts.filter(verdict => verdict !== ''),
    [],
  )
})

/** Makes an image that holds something from the beginning. */
async function convert(path: string, { options, size, compressed }: Case, seed: number) {
  writeFileSync(`${path}.raw`, diskContent(size, seed, 2 * clusterSizeOf(options)))
  await qemuImg(
    'convert',
    '-f',
    'raw',
    '-O',
    'qcow2',
    ...(compressed ? ['-c'] : []),
    '-o',
    options,
    `${path}.raw`,
    `${path}.qcow2`,
  )
}

/** Makes an empty one. */
async function create(path: string, { options, size, backing, backingFormat, dataFile }: Case, seed: number) {
  const more: string[] = []
  if (backing !== undefined) {
    writeFileSync(`${path}.base`, randomBytes(backing - (backing % 512), seed))
    if (backingFormat === 'qcow2') await qemuImg('convert', '-O', 'qcow2', '-f', 'raw', `${path}.base`, `${path}.base.q`)
    more.push('-b', `${basename(path)}.base${backingFormat === 'qcow2' ? '.q' : ''}`, '-F', backingFormat!)
  }
  const data = dataFile ? `,data_file=${path}.data${dataFile === 'raw' ? ',data_file_raw=on' : ''}` : ''
  await qemuImg('create', '-q', '-f', 'qcow2', '-o', options + data, ...more, `${path}.qcow2`, String(size))
}

const scribbles = ({ options, size, compressed }: Case, seed: number) =>
  scribble(size, clusterSizeOf(options), { compressed: compressed === true, seed: seed % 16 })

/** Says where we read the image otherwise; an empty string when nowhere. */
async function compare(path: string, name: string, wanted: Buffer): Promise<string> {
  await using stack = new AsyncDisposableStack()
  try {
    const node = await openImage(`${path}.qcow2`, stack, { readOnly: true })
    if (node.size !== wanted.length) return `${name}: ${node.size} bytes, and not ${wanted.length}`
    if (!(await readAt(node, 0, node.size)).equals(wanted)) return `${name}: at once`
    if (!(await inPieces(node, wanted))) return `${name}: in pieces`
    await checkExtents(node, { offset: 0, length: node.size }, wanted)
    return ''
  } catch (error) {
    return `${name}: ${(error as Error).stack}`
  }
}

const clusterSizeOf = (options: string) => Number(/cluster_size=(\d+)/.exec(options)![1])

async function inPieces(node: { read(offset: number, into: Buffer): Promise<void> }, wanted: Buffer) {
  for (let offset = 0; offset < wanted.length; offset += 40_961) {
    const length = Math.min(1500, wanted.length - offset)
    if (!(await readAt(node, offset, length)).equals(wanted.subarray(offset, offset + length))) return false
  }
  return true
}

t.test('the extents are those of qemu-img map', { skip: missing('qemu-img', 'qemu-io') }, async t => {
  await using scratch = new AsyncDisposableStack()
  const folder = await scratchFolder(scratch)
  for (const extended of ['off', 'on']) {
    const base = `${folder}/base-${extended}.qcow2`
    const middle = `${folder}/middle-${extended}.qcow2`
    const top = `${folder}/top-${extended}.qcow2`
    const options = `extended_l2=${extended},cluster_size=64k`
    await qemuImg('create', '-q', '-f', 'qcow2', '-o', options, base, '8M')
    await qemuIo(base, ...scribble(8 * MiB, 65536, { compressed: true }))
    await qemuImg('create', '-q', '-f', 'qcow2', '-o', options, '-b', base, '-F', 'qcow2', middle, '9M')
    await qemuIo(middle, 'write -P 7 1M 192k', 'write -z 5M 128k', 'write -P 9 8703k 1k')
    await qemuImg('create', '-q', '-f', 'qcow2', '-o', options, '-b', middle, '-F', 'qcow2', top, '12M')
    await qemuIo(top, 'write -P 3 2M 64k', 'write -P 3 11M 4k', 'write -z -u 6M 1M')
    const theirs = JSON.parse(await qemuImg('map', '--output=json', top)) as Mapped[]

    await using stack = new AsyncDisposableStack()
    const node = await openImage(top, stack, { readOnly: true })
    const ours = await Array.fromAsync(node.extents({ offset: 0, length: node.size }))
    t.same(differences(ours, theirs), [], `extended_l2=${extended}`)
    t.ok(ours.length > 20)
    await checkExtents(node, { offset: 0, length: node.size }, await readAt(node, 0, node.size))
  }
})

interface Mapped {
  readonly start: number
  readonly length: number
  readonly depth: number
  readonly present: boolean
  readonly zero: boolean
  readonly offset?: number
}

/** qemu-img counts layers from 0, and does not always look for holes in the file: where it says data we may say zero. */
function differences(ours: readonly Extent[], theirs: readonly Mapped[]): string[] {
  return theirs.flatMap(({ start, length, depth, present, zero, offset }) => {
    const parts = ours.filter(extent => extent.offset < start + length && extent.offset + extent.length > start)
    return parts
      .filter(part => {
        if ((part.depth ?? 1) !== (present ? depth + 1 : 0) || (zero && !part.zero)) return true
        const where = part.hostOffset === undefined ? undefined : part.hostOffset - part.offset
        return !zero && !part.zero && where !== (offset === undefined ? undefined : offset - start)
      })
      .map(part => JSON.stringify({ ours: part, theirs: { start, length, depth, present, zero, offset } }))
  })
}

t.test('a read-only open changes no byte of the file', { skip: missing('qemu-img', 'qemu-io') }, async t => {
  const image = `${t.testdir()}/image.qcow2`
  await qemuImg('create', '-q', '-f', 'qcow2', image, '1M')
  await qemuIo(image, ...scribble(MiB, 65536))
  const before = readFileSync(image)
  {
    await using stack = new AsyncDisposableStack()
    const node = await openImage(image, stack, { readOnly: true })
    await readAt(node, 0, MiB)
    await node.flush()
  }
  t.ok(readFileSync(image).equals(before))
  t.equal(await qemuCheck(image), '')
})
