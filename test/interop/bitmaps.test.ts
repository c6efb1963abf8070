// Dirty bitmaps judged by qemu-storage-daemon: the same verbs, writes, transactions and backups on both sides must give the same
// answers, counts and SHA-256. What was read wrongly is found too: qemu-img writes bitmaps that we read, and reads those that we write.

import { truncate } from 'node:fs/promises'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from '../helpers/property.ts'
import { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { messageOf } from '../../src/base/errors.ts'
import { bitmapAdd, bitmapClear, bitmapDisable, bitmapEnable, bitmapMerge, bitmapRemove } from '../../src/bitmaps/actions.ts'
import { BitmapSet } from '../../src/bitmaps/bitmap-set.ts'
import { checkAllows } from '../../src/bitmaps/check-allows.ts'
import type { Action } from '../../src/block/action.ts'
import { ConnectionLost, QmpClient, type QmpEvent } from '../../src/control/qmp-client.ts'
import { abort, transact } from '../../src/transactions/transact.ts'
import { scratchFolder } from '../helpers/control.ts'
import { qsdMissing, startQsd } from '../helpers/qemu-storage-daemon.ts'

const NAMES = ['a', 'b', 'c']
const name = fc.constantFrom(...NAMES)
const granularity = fc.constantFrom(512, 512, 1024, 4096, 4096, 65536, 65536, 1 << 20, 2 ** 31, undefined, 768)
const side = fc.nat(1)
const sources = fc.array(fc.record({ side: fc.option(side), name }), { minLength: 1, maxLength: 3 })

/** With the arguments of every verb; each takes its own. */
const verb = fc.record({
  verb: fc.constantFrom('add', 'add', 'remove', 'clear', 'enable', 'disable', 'merge', 'merge'),
  side,
  name,
  granularity,
  sources,
  disabled: fc.boolean(),
})
type Verb = typeof verb extends fc.Arbitrary<infer Value> ? Value : never

const write = fc.record({
  write: fc.constantFrom('write', 'write', 'zero', 'trim'),
  side,
  /** In sectors. */
  at: fc.nat(4100),
  sectors: fc.oneof(fc.integer({ min: 1, max: 16 }), fc.integer({ min: 1, max: 1500 })),
})
const transaction = fc.record({ transaction: fc.array(verb, { maxLength: 4 }), abort: fc.nat(4) })
const backup = fc.record({ backup: name, side, mode: fc.constantFrom('on-success', 'always', 'never') })
const endBackup = fc.record({ end: fc.constantFrom('finalize', 'cancel'), side })

const operation = fc.oneof(
  { weight: 6, arbitrary: verb },
  { weight: 5, arbitrary: write },
  { weight: 2, arbitrary: transaction },
  { weight: 2, arbitrary: backup },
  { weight: 2, arbitrary: endBackup },
)
type Operation = typeof operation extends fc.Arbitrary<infer Value> ? Value : never

const operations = fc.array(operation, { minLength: 10, maxLength: 40, size: 'max' })

/** Most names are taken at first. */
const begin = fc
  .tuple(...[0, 1].flatMap(side => NAMES.map(name => verb.map(verb => ({ ...verb, verb: 'add' as const, side, name })))))
  .chain(verbs => fc.shuffledSubarray(verbs, { minLength: 4 }))

/** Bytes; the last granule of the second is cut short whatever the granularity is above 512. */
const sizes = fc.constantFrom<[number, number]>(
  [2 << 20, 2 << 20],
  [(2 << 20) + 512, (2 << 20) + 512],
  [1 << 20, (2 << 20) - 512],
)

interface Job {
  readonly id: string
  readonly bitmap: string
  readonly mode: string
}

/** Two disks, here and there. */
class Pair implements AsyncDisposable {
  readonly #sets: BitmapSet[]
  readonly #jobs: (Job | undefined)[] = [undefined, undefined]

  private constructor(
    private readonly qemu: Qemu,
    private readonly sizes: readonly number[],
    private readonly nodes: readonly string[],
    private readonly clients: readonly NbdClient[],
    private readonly stack: AsyncDisposableStack,
  ) {
    this.#sets = sizes.map((size, index) => new BitmapSet({ nodeName: nodes[index]!, size }))
  }

  static async open(qemu: Qemu, sizes: readonly number[]) {
    await using stack = new AsyncDisposableStack()
    const nodes: string[] = []
    const clients: NbdClient[] = []
    for (const size of sizes) {
      const node = qemu.newName()
      const target = `${node}-target`
      await qemu.addFile(node, size, stack)
      await qemu.addFile(target, size, stack)
      await qemu.run('block-export-add', { id: node, type: 'nbd', 'node-name': node, writable: true })
      stack.defer(async () => void (await qemu.run('block-export-del', { id: node, mode: 'hard' })))
      nodes.push(node)
      clients.push(stack.use(await NbdClient.connect({ path: qemu.nbdSocket }, { exportName: node })))
    }
    return new Pair(qemu, sizes, nodes, clients, stack.move())
  }

  async do(asked: Operation) {
    const operation = 'transaction' in asked ? { ...asked, transaction: this.#withoutTraps(asked.transaction) } : asked
    const [theirs, ours] = await Promise.all([saidBy(() => this.#theirs(operation)), saidBy(() => this.#ours(operation))])
    if (theirs !== ours) throw new Error(`${JSON.stringify(operation)}: QEMU says ${theirs}; we say ${ours}`)
    await this.check()
  }

  async check() {
    for (const [index, set] of this.#sets.entries()) {
      const theirs = await this.qemu.bitmapsOf(this.nodes[index]!)
      const ours = [...set]
        .filter(({ name }) => name !== undefined)
        .map(bitmap => ({ ...bitmap.info(), sha256: bitmap.sha256() }))
      if (canonical(theirs) !== canonical(ours))
        throw new Error(`QEMU has\n${canonical(theirs)}\nand we have\n${canonical(ours)}`)
    }
  }

  /** An enable that fails in a transaction disables the bitmap in 7.2, or crashes where there is none. */
  #withoutTraps(verbs: readonly Verb[]) {
    const same = (one: Verb, other: Verb) => one.side === other.side && one.name === other.name
    return verbs.filter((verb, index) => {
      if (verb.verb !== 'enable') return true
      const before = verbs.slice(0, index).filter(other => same(other, verb))
      const bitmap = this.#sets[verb.side]!.find(verb.name)
      return bitmap && !bitmap.busy && !before.some(other => other.verb === 'remove')
    })
  }

  async #theirs(operation: Operation) {
    const { qemu } = this
    if ('verb' in operation) {
      const { type, data } = this.#qmpAction(operation)
      await qemu.run(type, data)
    } else if ('transaction' in operation) {
      const actions: object[] = operation.transaction.map(verb => this.#qmpAction(verb))
      if (operation.abort === 0) actions.push({ type: 'abort', data: {} })
      await qemu.run('transaction', { actions })
    } else if ('write' in operation) {
      const [offset, length] = this.#rangeOf(operation)
      const client = this.clients[operation.side]!
      // Where a backup is, its filter is opened without "discard": "unmap", and lets no trim through.
      const kind = operation.write === 'trim' && this.#jobs[operation.side] ? 'zero' : operation.write
      if (kind === 'write') await client.write(offset, Buffer.alloc(length, 1))
      else await client[kind](offset, length)
    } else if ('backup' in operation) {
      if (this.#jobs[operation.side]) return
      const node = this.nodes[operation.side]!
      const id = this.qemu.newName()
      const { backup: bitmap, mode } = operation
      const pending = qemu.status(id, 'pending')
      const start = { 'job-id': id, device: node, target: `${node}-target`, sync: 'bitmap', bitmap, 'bitmap-mode': mode }
      await qemu.run('blockdev-backup', { ...start, 'auto-finalize': false })
      await pending
      this.#jobs[operation.side] = { id, bitmap, mode }
    } else {
      const job = this.#jobs[operation.side]
      if (!job) return
      const gone = qemu.status(job.id, 'null')
      await qemu.run(operation.end === 'finalize' ? 'job-finalize' : 'job-cancel', { id: job.id })
      await gone
    }
  }

  async #ours(operation: Operation) {
    if ('verb' in operation) await transact([this.#action(operation)], async commits => commits())
    else if ('transaction' in operation) {
      const actions = operation.transaction.map(verb => this.#action(verb))
      if (operation.abort === 0) actions.push(abort())
      await transact(actions, async commits => commits())
    } else if ('write' in operation) this.#sets[operation.side]!.mark(...this.#rangeOf(operation))
    else if ('backup' in operation) {
      if (this.#jobs[operation.side]) return
      const bitmap = this.#sets[operation.side]!.find(operation.backup)
      if (!bitmap) throw new Error(`Bitmap '${operation.backup}' could not be found`)
      checkAllows(bitmap, operation.mode === 'never' ? 'read' : 'write')
      bitmap.freeze()
    } else {
      const job = this.#jobs[operation.side]
      this.#jobs[operation.side] = undefined
      if (!job) return
      const bitmap = this.#sets[operation.side]!.get(job.bitmap)
      const copied = job.mode === 'always' || (job.mode === 'on-success' && operation.end === 'finalize')
      if (copied) bitmap.abdicate()
      else bitmap.reclaim()
    }
  }

  #qmpAction({ verb, side, name, granularity, disabled, sources }: Verb) {
    const node = this.nodes[side]!
    const type = `block-dirty-bitmap-${verb}`
    if (verb === 'add') return { type, data: { node, name, ...(granularity !== undefined && { granularity }), disabled } }
    if (verb !== 'merge') return { type, data: { node, name } }
    const bitmaps = sources.map(({ side, name }) => (side === null ? name : { node: this.nodes[side]!, name }))
    return { type, data: { node, target: name, bitmaps } }
  }

  #action({ verb, side, name, granularity, disabled, sources }: Verb): Action {
    const of = (side: number) => () => this.#sets[side]!
    if (verb === 'add') return bitmapAdd(of(side), { name, granularity, disabled })
    if (verb === 'merge') {
      const from = sources.map(({ side, name }) => ({ name, ...(side !== null && { bitmapsOf: of(side) }) }))
      return bitmapMerge(of(side), name, from)
    }
    return { remove: bitmapRemove, clear: bitmapClear, enable: bitmapEnable, disable: bitmapDisable }[verb as 'remove'](
      of(side),
      name,
    )
  }

  #rangeOf({ side, at, sectors }: { side: number; at: number; sectors: number }): [offset: number, length: number] {
    const all = this.sizes[side]! / 512
    const from = at % all
    return [from * 512, Math.min(sectors, all - from) * 512]
  }

  async [Symbol.asyncDispose]() {
    for (const side of [0, 1]) await this.#theirs({ end: 'cancel', side })
    await this.stack.disposeAsync()
  }
}

/** By name: a bitmap that a backup has cleared moves up in QEMU's list, where its successor was. */
const canonical = (bitmaps: readonly { readonly name?: string }[]) =>
  bitmaps
    .map(bitmap => JSON.stringify(bitmap, Object.keys(bitmap).sort()))
    .sort()
    .join('\n')

/** The sentence of what was thrown, but that the other side is gone. */
async function saidBy(act: () => Promise<void>) {
  try {
    await act()
  } catch (error) {
    if (error instanceof ConnectionLost) throw error
    return messageOf(error)
  }
  return undefined
}

/** qemu-storage-daemon, asked by QMP. */
class Qemu {
  #names = 0
  readonly #waiting = new Map<string, () => void>()

  private constructor(
    private readonly folder: string,
    readonly nbdSocket: string,
  ) {}

  #client!: QmpClient

  static async start(stack: AsyncDisposableStack) {
    const folder = await scratchFolder(stack)
    const qemu = new Qemu(folder, join(folder, 'nbd.sock'))
    const onEvent = (event: QmpEvent) => qemu.#heard(event)
    qemu.#client = stack.use(await QmpClient.connect(await startQsd(stack), { onEvent }))
    await qemu.run('nbd-server-start', { addr: { type: 'unix', data: { path: qemu.nbdSocket } } })
    return qemu
  }

  newName() {
    return `n${this.#names++}`
  }

  run(command: string, args: object = {}): Promise<unknown> {
    return this.#client.execute(command, args)
  }

  /** An empty disk of its own, gone with the stack. */
  async addFile(node: string, size: number, stack: AsyncDisposableStack) {
    const filename = join(this.folder, node)
    writeFileSync(filename, '')
    await truncate(filename, size)
    await this.run('blockdev-add', { driver: 'file', 'node-name': node, filename, discard: 'unmap' })
    stack.defer(async () => void (await this.run('blockdev-del', { 'node-name': node })))
  }

  /** Once the job is in this state. */
  status(job: string, status: string) {
    return new Promise<void>(resolve => this.#waiting.set(`${job} ${status}`, resolve))
  }

  /** Those that have a name. */
  async bitmapsOf(node: string) {
    const nodes = (await this.run('query-named-block-nodes', { flat: true })) as QemuNode[]
    const bitmaps = nodes.find(other => other['node-name'] === node)!['dirty-bitmaps'] ?? []
    const named = bitmaps.filter(bitmap => bitmap.name !== undefined)
    return Promise.all(
      named.map(async bitmap => ({
        ...bitmap,
        ...((await this.run('x-debug-block-dirty-bitmap-sha256', { node, name: bitmap.name })) as { sha256: string }),
      })),
    )
  }

  #heard({ event, data }: QmpEvent) {
    if (event === 'JOB_STATUS_CHANGE') this.#waiting.get(`${String(data['id'])} ${String(data['status'])}`)?.()
  }
}

interface QemuNode {
  readonly 'node-name': string
  readonly 'dirty-bitmaps'?: readonly { readonly name?: string }[]
}

t.test(
  'whatever is done to the bitmaps of two disks, qemu-storage-daemon answers and counts the same',
  { skip: qsdMissing },
  async t => {
    await using stack = new AsyncDisposableStack()
    let qemu = await Qemu.start(stack)
    let died = 0
    await fc.assert(
      fc.asyncProperty(sizes, begin, operations, async (sizes, begin, operations) => {
        try {
          await using pair = await Pair.open(qemu, sizes)
          for (const operation of [...begin, ...operations]) await pair.do(operation)
        } catch (error) {
          const lost = error instanceof SuppressedError ? error.suppressed : error
          if (!(lost instanceof ConnectionLost)) throw error
          died++
          qemu = await Qemu.start(stack)
        }
      }),
      { numRuns: 25, endOnFailure: true },
    )
    t.comment(`qemu-storage-daemon died ${died} times`)
    t.ok(died <= 4, 'it lived long enough to judge')
  },
)
