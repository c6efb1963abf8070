// The copy-before-write filter: before the guest overwrites anything it is copied to the target, once, so that source and target
// together still show the instant at which the filter was put in.
//
// The disk is cut into clusters. Each is `waiting` at first (see cluster-map.ts). A guest's write, zero or discard first has all
// waiting clusters that it touches copied, whole, and only then goes on. The invariants:
// - The guest changes a cluster only when it is no longer `waiting`, or when the view is broken. Readers of the view rest on this
//   and take no lock (frozen-view.ts).
// - A cluster is marked `copied` only when its old content is in the target. Who copies holds the clusters alone meanwhile, so that
//   each is copied once: others who touch them wait, and find them copied.
// - A write that makes zeroes copies as any other does, even where it covers whole clusters: the view shows the old data.
// - Threads write by themselves (`lend`) what no longer waits, and nothing else; what they ask for is copied as for any other write. As no cluster waits
//   again, nobody has to call them back for that.
// - Once the view is broken nothing is copied any more, and every read of the view fails: it is never half right.
//
// A copy that takes too long is not stopped, as no request can be; it goes on behind the guest's back and holds its clusters to the
// end. With break-snapshot the guest's write goes on at once and the view is lost, so what that copy reads does not matter; with
// break-guest-write the guest's write has failed and has changed nothing, so the copy is still a good one.

import { z } from 'zod'
import { Budget } from '../base/budget.ts'
import { InvalidParameter, IoError, messageOf, NotSupported } from '../base/errors.ts'
import { endOf, pieces, type Range } from '../base/ranges.ts'
import { RangeLock } from '../base/range-lock.ts'
import { within } from '../base/time.ts'
import { isZero } from '../base/zeroes.ts'
import { Borrowers } from '../block/borrowers.ts'
import type {
  BlockDriver,
  BlockIo,
  BlockNode,
  Borrower,
  LentFile,
  OpenContext,
  ReadyRead,
  WriteFlags,
  ZeroFlags,
} from '../block/driver.ts'
import { ALL, Permission } from '../block/permissions.ts'
import { ClusterMap } from './cluster-map.ts'
import { FrozenView } from './frozen-view.ts'

const SMALLEST_CLUSTER = 64 << 10

/** Two bits each: 256 MiB. A larger disk has larger clusters. */
const MOST_CLUSTERS = 2 ** 30

/** Longest that is read from the source at once. */
const COPY_BYTES = 1 << 20
/** Bytes of the buffers that are kept for the next copies. */
const SPARE_BYTES = 2 << 20

/** What all copies of one filter may hold in memory at a time. */
const MEMORY_BYTES = 16 << 20

/** A timer's longest, in seconds. */
const LONGEST_TIMEOUT = Math.floor((2 ** 31 - 1) / 1000)

const options = z.strictObject({
  'on-cbw-error': z
    .enum(['break-snapshot', 'break-guest-write'])
    .default('break-snapshot')
    .describe("What breaks when a cluster cannot be copied. The default is the view; QEMU's is the guest's write"),
  'cbw-timeout': z
    .int()
    .meta({ qapi: 'uint32' })
    .min(0)
    .max(LONGEST_TIMEOUT)
    .default(0)
    .describe('Seconds after which a copy counts as failed; 0: never'),
  bitmap: z
    .strictObject({ node: z.string(), name: z.string() })
    .optional()
    .describe('Only the clusters that are dirty in this bitmap when the filter is opened are in the view; reading others fails'),
  'min-cluster-size': z
    .int()
    .min(0)
    .max(2 ** 30)
    .refine(size => size === 0 || Number.isInteger(Math.log2(size)), 'min-cluster-size must be a power of two')
    .default(0)
    .describe('Bytes that are copied at once, at least; never less than 64 KiB'),
})

export type CopyBeforeWriteOptions = z.infer<typeof options>

export const copyBeforeWrite: BlockDriver<CopyBeforeWriteOptions> = {
  name: 'copy-before-write',
  options,
  children: {
    file: {
      role: 'filtered',
      /** While somebody uses the filter, whoever writes must write through it. It reads what it copies. */
      permissions: ({ perm, shared }) => ({
        perm: perm & Permission.write ? perm | Permission.consistentRead : perm,
        shared: perm === 0 ? shared : shared & ~(Permission.write | Permission.resize),
      }),
    },
    target: {
      role: 'target',
      /** Others may write there too: the guest's disk may have it among its backing files. */
      permissions: () => ({ perm: Permission.consistentRead | Permission.write, shared: ALL & ~Permission.resize }),
    },
  },
  async open(options, context) {
    const { file: source, target } = context.children as { file: BlockIo; target: BlockIo }
    if (target.size < source.size) {
      throw new InvalidParameter(
        `copy-before-write: the target has ${target.size} bytes, and needs the ${source.size} of the file`,
      )
    }
    let clusterSize = Math.max(SMALLEST_CLUSTER, options['min-cluster-size'])
    while (source.size / clusterSize > MOST_CLUSTERS) clusterSize *= 2
    const clusters = new ClusterMap(source.size, clusterSize)
    if (options.bitmap) includeOnly(clusters, context.bitmap(options.bitmap.node, options.bitmap.name))
    return new CopyBeforeWrite(source, target, clusters, options, context)
  },
}

function includeOnly(clusters: ClusterMap, bitmap: ReturnType<OpenContext['bitmap']>) {
  const disk = { offset: 0, length: clusters.size }
  clusters.exclude(disk)
  for (const range of bitmap.dirtyRanges(disk)) clusters.include(range)
}

/** The frozen view cannot be had any more. */
export class SnapshotBroken extends IoError {}

/** In full and not a Passthrough: a new operation that changes the disk must not slip by. */
class CopyBeforeWrite implements BlockNode {
  readonly snapshot: FrozenView
  readonly #copying = new RangeLock()
  readonly #memory = new Budget(MEMORY_BYTES)
  /** For a cluster each, not in use: new memory costs more than to copy into it. */
  readonly #buffers: Buffer[] = []
  /** They write only what does not wait. */
  readonly #borrowers = new Borrowers()
  readonly #timeoutMs: number
  #broken: SnapshotBroken | undefined

  constructor(
    private readonly source: BlockIo,
    private readonly target: BlockIo,
    private readonly clusters: ClusterMap,
    private readonly options: CopyBeforeWriteOptions,
    private readonly context: Pick<OpenContext, 'nodeName' | 'report'>,
  ) {
    this.#timeoutMs = options['cbw-timeout'] * 1000
    const throwIfBroken = () => this.#throwIfBroken()
    const isBroken = () => this.#broken !== undefined
    this.snapshot = new FrozenView({ clusters, source, target, copying: this.#copying, isBroken, throwIfBroken })
  }

  get size() {
    return this.source.size
  }

  read(offset: number, into: Buffer) {
    return this.source.read(offset, into)
  }

  readReady(reads: readonly ReadyRead[]) {
    this.source.readReady?.(reads)
  }

  lend(borrower: Borrower): LentFile | undefined {
    if (this.#broken) return this.source.lend?.(borrower)
    const { changeable } = this.clusters
    const lent = changeable && this.source.lend?.(borrower)
    if (!lent) return undefined
    const out = this.#borrowers.add(() => borrower.revoke())
    return {
      ...lent,
      regions: [...lent.regions, { terms: changeable.terms, start: 0, prepare: range => this.#keep(range) }],
      end: () => {
        lent.end()
        out[Symbol.dispose]()
      },
    }
  }

  async write(offset: number, data: Buffer, flags?: WriteFlags) {
    await this.#keep({ offset, length: data.length })
    await this.source.write(offset, data, flags)
  }

  async zero(range: Range, flags?: ZeroFlags) {
    await this.#keep(range)
    await this.source.zero(range, flags)
  }

  async discard(range: Range) {
    await this.#keep(range)
    await this.source.discard(range)
  }

  flush() {
    return this.source.flush()
  }

  extents(range: Range) {
    return this.source.extents(range)
  }

  async resize(): Promise<never> {
    throw new NotSupported(
      `'${this.context.nodeName}' keeps a frozen view, so the disk cannot change its size; end the backup first`,
    )
  }

  /** Waits for copies that nobody waits for any more: they still use the nodes below. */
  async [Symbol.asyncDispose]() {
    using _idle = await this.#copying.exclusive({ offset: 0, length: this.size })
  }

  /** After this the guest may change the range. */
  async #keep(range: Range) {
    const touched = this.clusters.touchedBy(range)
    if (this.#broken || !this.clusters.isWaiting(touched)) return
    try {
      const copied = this.#copyWaiting(touched)
      await (this.#timeoutMs > 0 ? within(this.#timeoutMs, copied, () => this.#tooSlow()) : copied)
    } catch (error) {
      if (this.options['on-cbw-error'] === 'break-guest-write') throw error
      this.#break(error)
    }
  }

  async #copyWaiting(touched: Range) {
    using _alone = await this.#copying.exclusive(touched)
    for (const run of this.clusters.runs(touched)) {
      if (this.#broken) return
      if (run.state === 'waiting') await this.#copy(run)
    }
  }

  /** A long run is most often a disk being cleared; then its holes are not read. */
  async #copy(run: Range) {
    if (run.length <= COPY_BYTES) await this.#copyBytes(run)
    else {
      for await (const extent of this.source.extents(run)) {
        if (extent.zero) await this.target.zero(extent, { unmap: true })
        else for (const piece of pieces(extent, COPY_BYTES)) await this.#copyBytes(piece)
      }
    }
    this.clusters.markCopied(run)
  }

  async #copyBytes(range: Range) {
    using _share = await this.#memory.take(range.length)
    this.#throwIfBroken()
    const { clusterSize } = this.clusters
    const isOne = range.length <= clusterSize && clusterSize <= COPY_BYTES
    const buffer = (isOne ? this.#buffers.pop() : undefined) ?? Buffer.allocUnsafeSlow(isOne ? clusterSize : range.length)
    const data = buffer.subarray(0, range.length)
    await this.source.read(range.offset, data)
    for (const part of pieces(range, clusterSize)) {
      this.#throwIfBroken()
      const bytes = data.subarray(part.offset - range.offset, endOf(part) - range.offset)
      if (isZero(bytes)) await this.target.zero(part, { unmap: true })
      else await this.target.write(part.offset, bytes)
    }
    if (isOne && this.#buffers.length * clusterSize < SPARE_BYTES) this.#buffers.push(buffer)
  }

  #break(error: unknown) {
    if (this.#broken) return
    this.#broken = new SnapshotBroken(
      `the frozen view of '${this.context.nodeName}' is lost: ${messageOf(error)}; begin the backup again`,
      { cause: error },
    )
    this.#borrowers.revoke() // who is lent to anew may write everywhere
    this.context.report({ type: 'snapshot-broken', error: this.#broken })
  }

  #throwIfBroken() {
    if (this.#broken) throw this.#broken
  }

  #tooSlow() {
    return new IoError(`old data could not be copied within ${this.options['cbw-timeout']} s`)
  }
}
