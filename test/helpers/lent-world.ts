// A disk whose clients are lent to threads, the guests that write to it, and what else is done with it meanwhile.

import { NbdClient } from 'nbd-client-ts'
import { Allocation, BASE_ALLOCATION } from 'nbd-client-ts/protocol'
import { readFileSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { bitmapAdd, bitmapRemove } from '../../src/bitmaps/actions.ts'
import { ActivityFolder } from '../../src/bitmaps/activity-folder.ts'
import type { DirtyBitmap } from '../../src/bitmaps/dirty-bitmap.ts'
import type { Borrower } from '../../src/block/driver.ts'
import { alignUp } from '../../src/base/ranges.ts'
import { READER } from '../../src/block/graph.ts'
import { ALL, Permission } from '../../src/block/permissions.ts'
import { Scratch } from '../../src/block/scratch.ts'
import { lender } from '../../src/nbd-server/lease/lender.ts'
import { changesFor } from '../../src/block/reopen-options.ts'
import { Freeze } from '../../src/transactions/freeze.ts'
import { Reopen } from '../../src/transactions/reopen.ts'
import { transact } from '../../src/transactions/transact.ts'
import { qemuImg } from './qemu.ts'
import { exportOf, quiet, serve } from './served.ts'
import { testGraph } from './test-graph.ts'

export const BLOCK = 4096
export const BLOCKS = 256
export const SIZE = BLOCK * BLOCKS + 1000
/** What a frozen view keeps at once. */
const VIEWED = 65536
/** The raw node begins there in its file. */
export const START = 512

export const BORROWER: Borrower = { revoke() {}, highestWrite: () => 0 }

export const turns = async (count: number) => {
  for (let turn = 0; turn < count; turn++) await new Promise(resolve => setImmediate(resolve))
}

/** Logs of regions as small as these. */
class Logs extends ActivityFolder {
  readonly smallestRegion = 8 * BLOCK
}

export const KINDS = ['raw', 'raw with bitmaps', 'qcow2', 'qcow2, small clusters', 'qcow2, extended'] as const
type Kind = (typeof KINDS)[number]

const CREATE: Partial<Record<Kind, string>> = {
  qcow2: 'cluster_size=16k',
  'qcow2, small clusters': 'cluster_size=512,refcount_bits=2',
  'qcow2, extended': 'cluster_size=64k,extended_l2=on',
}

/** An image, a raw one in the middle of its file or with bitmaps beside it, served, and nothing lent as yet. */
export async function world(stack: AsyncDisposableStack, kind: Kind = 'raw') {
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-lease-'))
  stack.defer(() => rm(folder, { recursive: true }))
  const filename = join(folder, 'disk')
  const start = kind === 'raw' ? START : 0
  const create = CREATE[kind]
  const size = create === undefined ? SIZE : alignUp(SIZE, 512)
  if (create === undefined) await writeFile(filename, Buffer.alloc(start + SIZE))
  else await qemuImg('create', '-q', '-f', 'qcow2', '-o', create, filename, String(size))
  await writeFile(join(folder, 'bitmaps.qcow2'), '')
  const { graph } = testGraph({ logs: new Logs(join(folder, 'activity')) })
  stack.defer(async () => {
    await graph[Symbol.asyncDispose]()
    if (create !== undefined) await qemuImg('check', '-q', '-f', 'qcow2', filename)
  })
  const bitmaps = { driver: 'file', filename: join(folder, 'bitmaps.qcow2') }
  const options = {
    driver: create === undefined ? 'raw' : 'qcow2',
    'node-name': 'disk',
    ...(kind === 'raw' ? { offset: START, size: SIZE } : kind === 'raw with bitmaps' ? { bitmaps } : {}),
    discard: 'unmap',
  }
  const disk = await graph.add({ ...options, file: { driver: 'file', 'node-name': 'file', filename, discard: 'unmap' } })
  const edge = graph.attach(disk, {
    description: 'an export',
    perm: Permission.consistentRead | Permission.write,
    shared: ALL,
  })
  const exported = exportOf(edge)
  const served = await serve([exported], stack)
  const reader = graph.attach(disk, { description: 'a reader', ...READER })
  const scratch = new Scratch(graph, folder, 2 ** 30, 0)
  const content = async () => {
    if (create === undefined) return readFileSync(filename).subarray(start)
    const bytes = Buffer.alloc(size)
    await reader.read(0, bytes)
    return bytes
  }
  const connect = (extendedHeaders: 'auto' | 'never' = 'auto') =>
    NbdClient.connect(served.uri('disk'), { contexts: [BASE_ALLOCATION], extendedHeaders })
  return { graph, disk, options, edge, exported, served, reader, scratch, content, connect, size, keeps: kind !== 'raw' }
}

type World = Awaited<ReturnType<typeof world>>

/** Writes until it has been lent once more, with whatever threads there are. */
export async function untilLent(client: NbdClient, block = 0) {
  const before = lender.loans
  for (let write = 0; lender.loans === before; write++) await client.write(block * BLOCK, Buffer.alloc(BLOCK, write))
}

/** A thread is there, and free. */
export async function warmUp({ connect, served }: Pick<World, 'connect' | 'served'>) {
  const client = await connect()
  await untilLent(client)
  await client.close()
  await quiet(served)
  while (!lender.hasRoom) await turns(10)
}

/** A block that says which version of which block it is; every fifth is of zeroes, in part. */
const blockOf = (index: number, version: number) => {
  const bytes = Buffer.alloc(BLOCK, version % 5 === 0 ? 0 : version)
  bytes.writeUInt32BE(index, 8)
  bytes.writeUInt32BE(version, BLOCK - 4)
  return bytes
}

/** Who writes blocks of its own, one version after the other, and finds what it wrote. */
export class Guest {
  readonly #versions = new Map<number, number>()

  constructor(
    private readonly client: NbdClient,
    private readonly blocks: readonly number[],
  ) {}

  async run(steps: readonly number[]) {
    for (const step of steps) {
      const own = (at: number) => this.blocks[at % this.blocks.length]!
      switch (step % 16) {
        case 0:
          await this.client.flush()
          break
        case 1:
          await this.#write(own(step), true)
          break
        case 2:
          await this.client.zero(own(step) * BLOCK, BLOCK)
          this.#versions.delete(own(step))
          break
        case 3: {
          const block = own(step)
          await this.client.trim(block * BLOCK, BLOCK)
          await this.#write(block, false)
          break
        }
        case 4:
          await this.#check(own(step))
          break
        case 5:
          await this.#checkMany(own(step), 17 + (step % 111))
          break
        case 14:
          await this.#status(own(step))
          break
        case 15:
          await this.client.cache(own(step) * BLOCK, BLOCK)
          await this.client.write(own(step) * BLOCK, Buffer.alloc(0))
          break
        default:
          await Promise.all(new Set([own(step), own(step * 7), own(step * 31)]).values().map(block => this.#write(block, false)))
      }
    }
  }

  /** Reads nearly all the time, some or many at a time, of any place and length; so that it is lent as a reader. */
  async runReading(steps: readonly number[]) {
    for (const step of steps) {
      if (step % 16 < 2) await this.run([step % 16 === 0 ? step + 6 : step + 1])
      const depth = [1, 4, 16, 128][step % 4]!
      await Promise.all(
        Array.from({ length: depth }, (_, at) => {
          const offset = ((step + 1) * 7919 * (at + 1)) % SIZE
          return this.#checkRange(offset, Math.min(1 + ((step * 31 * (at + 1)) % (step % 5 === 0 ? 65536 : 6000)), SIZE - offset))
        }),
      )
    }
  }

  /** Its own blocks in there, or parts of them. */
  async #checkRange(offset: number, length: number) {
    const found = await this.client.read(offset, length)
    for (const block of this.blocks) {
      const from = Math.max(offset, block * BLOCK)
      const to = Math.min(offset + length, (block + 1) * BLOCK)
      if (from >= to) continue
      const expected = this.expected(block).subarray(from - block * BLOCK, to - block * BLOCK)
      if (!found.subarray(from - offset, to - offset).equals(expected))
        throw new Error(`block ${block} does not read as it was written, in ${length} bytes at ${offset}`)
    }
  }

  async #write(block: number, fua: boolean) {
    const version = (this.#versions.get(block) ?? 0) + 1
    await this.client.write(block * BLOCK, blockOf(block, version), { fua })
    this.#versions.set(block, version)
  }

  /** What is said to be zero is. */
  async #status(block: number) {
    if (this.client.contexts.length === 0) return
    for await (const { offset, length, status } of this.client.extents({ offset: block * BLOCK, length: BLOCK }))
      if (status[BASE_ALLOCATION]! & Allocation.ZERO)
        if (
          this.expected(block)
            .subarray(offset - block * BLOCK, offset - block * BLOCK + length)
            .some(byte => byte !== 0)
        )
          throw new Error(`block ${block} is said to be zero, and is not`)
  }

  async #check(block: number) {
    const found = await this.client.read(block * BLOCK, BLOCK)
    if (!found.equals(this.expected(block))) throw new Error(`block ${block} does not read as it was written`)
  }

  /** By one large read: its own ones. */
  async #checkMany(first: number, count: number) {
    const blocks = Math.min(count, BLOCKS - first)
    const found = await this.client.read(first * BLOCK, blocks * BLOCK)
    for (const block of this.blocks)
      if (block >= first && block < first + blocks)
        if (!found.subarray((block - first) * BLOCK, (block - first + 1) * BLOCK).equals(this.expected(block)))
          throw new Error(`block ${block} does not read as it was written, among others`)
  }

  expected(block: number) {
    const version = this.#versions.get(block)
    return version === undefined ? Buffer.alloc(BLOCK) : blockOf(block, version)
  }

  check(content: Buffer) {
    for (const block of this.blocks)
      if (!content.subarray(block * BLOCK, (block + 1) * BLOCK).equals(this.expected(block)))
        throw new Error(`what was written last to block ${block} is not there`)
  }
}

export const MOMENTS = [
  'collect',
  'collect',
  'drain',
  'add',
  'remove',
  'freeze',
  'job',
  'threshold',
  'count',
  'keep',
  'store',
  'snapshot',
  'reopen',
] as const
type Moment = (typeof MOMENTS)[number]

/** Carries what changed to a replica, and does what else may come between. */
export class Host {
  readonly #replica: Buffer
  #others = 0

  constructor(private readonly world: World) {
    this.#replica = Buffer.alloc(world.size)
    world.disk.bitmaps.add({ name: 'b', granularity: 8192, persistent: world.keeps })
  }

  /** Another one once the image was opened in another way, with the same marks. */
  get #bitmap(): DirtyBitmap {
    return this.world.disk.bitmaps.find('b')!
  }

  async run(moments: readonly { readonly what: Moment; readonly pause: number }[]) {
    for (const { what, pause } of moments) {
      await turns(pause)
      await this[what]()
    }
  }

  /** As an incremental backup without an instant of its own: what is dirty is taken, and the marks with it, and read then. */
  async collect() {
    const taken = this.#bitmap.copy()
    this.world.disk.bitmaps.clear(this.#bitmap)
    await this.#carry(taken)
  }

  /** The same by a job's means. */
  async job() {
    this.#bitmap.freeze()
    await turns(2)
    const taken = this.#bitmap.copy()
    this.#bitmap.abdicate()
    await this.#carry(taken)
  }

  async #carry(taken: DirtyBitmap) {
    for (const { offset, length } of taken.dirtyRanges({ offset: 0, length: this.world.size }))
      await this.world.reader.read(offset, this.#replica.subarray(offset, offset + length))
  }

  async drain() {
    await this.world.graph.drained([this.world.disk], async () => {
      const before = await this.world.content()
      await turns(3)
      if (!before.equals(await this.world.content())) throw new Error('somebody writes while the disk is drained')
    })
  }

  async add() {
    this.world.disk.bitmaps.add({ name: `other-${this.#others++}`, granularity: 512 << (this.#others % 8) })
  }

  async remove() {
    const other = [...this.world.disk.bitmaps].find(({ name }) => name?.startsWith('other'))
    if (other) this.world.disk.bitmaps.release(other)
  }

  async freeze() {
    const { graph, disk, scratch, content, size } = this.world
    await using freeze = new Freeze(graph, disk, scratch)
    let instant: Buffer | undefined
    await transact([freeze], commits =>
      graph.drained([disk], async () => {
        instant = await content()
        await commits()
      }),
    )
    const { source, release } = freeze.read('a backup')
    const read = Buffer.alloc(size)
    // What is copied or released meanwhile is for threads again.
    for (let from = 0, pause = 4; pause < 20 && !freeze.broken; from += 3 * VIEWED, pause *= 2) {
      await turns(pause)
      await source.read(from, read.subarray(from))
      if (!read.subarray(from).equals(instant!.subarray(from))) throw new Error('the frozen view has moved')
      await release({ offset: from, length: 3 * VIEWED })
    }
    await graph.detach(source)
  }

  async threshold() {
    this.world.disk.watchWrites({ offset: SIZE, exceeded() {} })
    await turns(2)
    this.world.disk.watchWrites(undefined)
  }

  /** Another one comes, or goes, that is kept where some are. */
  async keep() {
    const { disk, keeps } = this.world
    const bitmaps = () => disk.bitmaps
    const other = disk.bitmaps.find('kept')
    const action = other
      ? bitmapRemove(bitmaps, 'kept')
      : bitmapAdd(bitmaps, { name: 'kept', granularity: 4096, persistent: keeps })
    await transact([action], async commits => commits())
  }

  async store() {
    await this.world.disk.storeBitmaps()
  }

  /** What was there before it is written elsewhere from then on, and in place again when it is gone. */
  async snapshot() {
    const { graph, disk } = this.world
    const { snapshots } = disk
    if (!snapshots) return
    const { id } = await graph.drained([disk], () => snapshots.create('now', new Date(0)))
    await turns(20)
    await graph.drained([disk], () => snapshots.delete(id))
  }

  /** Zeroes are looked for in what is written for a while, which is not for threads. */
  async reopen() {
    const { graph, disk, options, keeps } = this.world
    if (keeps && disk.driver.name === 'raw') return // its bitmaps' file is opened by options, and has no name to go on with
    for (const more of [{ 'detect-zeroes': 'unmap' }, {}]) {
      const reopen = new Reopen(graph, async () => changesFor(graph, [{ ...options, file: 'file', ...more }]))
      await transact([reopen], commits => graph.drained([disk], async () => commits()))
      await turns(10)
    }
  }

  async count() {
    const { count } = this.#bitmap
    if (count < 0 || count > this.world.size + 8192) throw new Error(`${count} bytes are dirty`)
  }

  async check() {
    await this.collect()
    if (!this.#replica.equals(await this.world.content())) throw new Error('a mark was lost: the replica is not as the disk')
  }
}
