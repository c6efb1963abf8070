// Power cuts and kills: at every moment of a history of writes and verbs, whatever part of the unflushed sectors of the image and of the
// activity log is left, the bitmaps are those from before a verb or from behind it, and have every granule that changed since.

import { setImmediate } from 'node:timers/promises'
import fc from '../helpers/property.ts'
import t from 'tap'
import { z } from 'zod'
import { bitmapAdd, bitmapClear, bitmapDisable, bitmapEnable, bitmapMerge, bitmapRemove } from '../../src/bitmaps/actions.ts'
import type { Action } from '../../src/block/action.ts'
import type { AnyDriver, BlockNode } from '../../src/block/driver.ts'
import type { Edge } from '../../src/block/edge.ts'
import { Graph } from '../../src/block/graph.ts'
import { ALL, Permission } from '../../src/block/permissions.ts'
import { drivers } from '../../src/drivers/index.ts'
import { createImage } from '../../src/drivers/qcow2/create.ts'
import { transact } from '../../src/transactions/transact.ts'
import { readAt } from '../helpers/block-node-suite.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { SimulatedDisk } from '../helpers/simulated-disk.ts'
import { SimulatedFolder } from '../helpers/simulated-folder.ts'
import { SimulatedThread } from '../helpers/simulated-thread.ts'

const GRANULARITY = 1024
const SIZE = 192 << 10
const GRANULES = SIZE / GRANULARITY

const ENOUGH = Number(process.env['STILLPOINT_CRASHES'] ?? 10_000)
const MOST_HISTORIES = ENOUGH

/** What is known of a bitmap. */
interface Known {
  enabled: boolean
  /** What the disk held when it began to record; undefined where that is not its whole story. */
  baseline: Buffer | undefined
  /** Granules that it must have: writes that were answered. */
  readonly must: Set<number>
}

type State = Map<string, Known>

const copyOf = (state: State): State =>
  new Map([...state].map(([name, known]) => [name, { ...known, must: new Set(known.must) }]))

type Writes = readonly (readonly [granule: number, length: number, seed: number])[]

type Format = 'qcow2' | 'raw'

/** The image, and of a raw one also the one that its bitmaps are in. */
type Files<File> = readonly [image: File, bitmaps?: File]

interface Cut {
  readonly files: Files<Buffer>
  readonly logs: Map<string, Buffer>
  /** One of them must be what is found. */
  readonly states: readonly State[]
}

const simulated = (name: string, node: BlockNode): AnyDriver => ({
  name,
  options: z.strictObject({}),
  children: {},
  open: async () => node,
})

async function openDisk([file, bitmaps]: Files<BlockNode>, logs: SimulatedFolder | undefined) {
  const graph = new Graph([simulated('simulated', file), ...(bitmaps ? [simulated('beside', bitmaps)] : []), ...drivers], {
    logs,
  })
  const risks: string[] = []
  graph.watch((_name, event) => void risks.push(event.error.message))
  const node = await graph.add({
    'node-name': 'disk',
    discard: 'unmap',
    ...(bitmaps ? { driver: 'raw', bitmaps: { driver: 'beside' } } : { driver: 'qcow2', 'l2-cache-size': 0 }),
    file: { driver: 'simulated' },
  })
  return { graph, node, risks }
}

async function makeFiles(format: Format): Promise<Files<SimulatedDisk>> {
  const disk = new SimulatedDisk()
  if (format === 'qcow2') {
    await createImage(disk, { size: SIZE, clusterSize: 512 })
    await disk.flush()
    return [disk]
  }
  const beside = new SimulatedDisk()
  await disk.resize(SIZE)
  await disk.flush()
  await createImage(beside, { size: SIZE, clusterSize: 512, dataFile: 'disk', dataFileRaw: true }, disk)
  await beside.flush()
  return [disk, beside]
}

/** A guest, a manager and a model of what they may find after a crash. */
class History {
  readonly cuts: Cut[] = []
  readonly #model = Buffer.alloc(SIZE)
  #states: State[] = [new Map()]
  /** Whether a write that is told of now was over before a verb that waits for nobody. */
  #isUnsure = false
  /** Granules that are being written, whoever writes them. */
  readonly #underWay = new Set<number>()
  #changes = 0
  #names = 0

  readonly #lender: Edge
  #thread: SimulatedThread | undefined

  private constructor(
    readonly files: Files<SimulatedDisk>,
    readonly logs: SimulatedFolder,
    readonly opened: Awaited<ReturnType<typeof openDisk>>,
    private readonly every: number,
    private readonly seed: number,
  ) {
    this.#onChange(() => this.#maybeCut())
    const { graph, node } = opened
    this.#lender = graph.attach(node, { description: 'a guest', perm: Permission.write, shared: ALL })
  }

  static async begin(format: Format, every: number, seed: number) {
    const files = await makeFiles(format)
    const logs = new SimulatedFolder()
    return new History(files, logs, await openDisk(files, logs), every, seed)
  }

  #onChange(call: () => void) {
    for (const one of [...this.files, this.logs]) if (one) one.onChange = call
  }

  #maybeCut() {
    const seed = this.seed + 7 * ++this.#changes
    if (seed % this.every !== 0) return
    this.cuts.push({
      files: through(this.files, disk => disk.afterCrash(seed + (disk === this.files[0] ? 0 : 2))),
      logs: this.logs.afterCrash(seed + 1),
      states: this.#states.map(copyOf),
    })
  }

  get #now(): State {
    return this.#states[0]!
  }

  async guest(writes: Writes) {
    const { node, graph } = this.opened
    const edge = graph.attach(node, { description: 'a guest', perm: Permission.write, shared: ALL })
    await Promise.all(
      writes.map(async ([granule, length, seed]) => {
        const granules = Array.from({ length: Math.min(length, GRANULES - granule) }, (_, index) => granule + index)
        // Two that overlap may land in any order, and nobody would know what is there then.
        if (granules.some(one => this.#underWay.has(one))) return
        for (const one of granules) this.#underWay.add(one)
        // What a thread may not write the main one does, and then it may.
        for (let round = 0; round < 3; round++) {
          const data = randomBytes(granules.length * GRANULARITY, seed + round)
          const offset = granule * GRANULARITY
          if (this.#thread?.isOver !== false) this.#thread = new SimulatedThread(this.#lender, this.files[0])
          if (!(await this.#thread.write(offset, data, seed % 40))) await edge.write(offset, data)
          this.#model.set(data, offset)
        }
        for (const one of granules) this.#underWay.delete(one)
        for (const [index, state] of this.#states.entries())
          if (index > 0 || !this.#isUnsure)
            for (const { enabled, must } of state.values()) if (enabled) for (const one of granules) must.add(one)
      }),
    )
    await graph.detach(edge)
  }

  /** Whoever's write has ended knows it: nothing is between the two but turns of our own. */
  async #answered() {
    await setImmediate()
  }

  flush() {
    return this.opened.node.io.flush()
  }

  /** `meanwhile` is written from the instant of the verb on. */
  async verb(kind: number, pick: number, meanwhile: Writes = []) {
    const after = copyOf(this.#now)
    const names = [...after.keys()]
    const name = names[pick % Math.max(1, names.length)]
    const other = names[(pick + 1) % Math.max(1, names.length)]
    const bitmaps = () => this.opened.node.bitmaps
    const actions: Action[] = []
    const begin = (fresh: Known) => (fresh.baseline = Buffer.from(this.#model))
    const fresh: Known = { enabled: true, baseline: undefined, must: new Set() }
    let atInstant: (() => void) | undefined
    let drained = true
    let guest: Promise<void> | undefined
    if (kind === 0 || name === undefined) {
      // A checkpoint: a new one takes over from the one that records.
      const added = `b${++this.#names}`
      actions.push(bitmapAdd(bitmaps, { name: added, granularity: GRANULARITY, persistent: true }))
      for (const [name, known] of after) {
        if (!known.enabled) continue
        actions.push(bitmapDisable(bitmaps, name))
        known.enabled = false
        known.baseline = undefined
      }
      after.set(added, fresh)
      atInstant = () => begin(fresh)
    } else if (kind === 1) {
      actions.push(bitmapClear(bitmaps, name))
      const known = after.get(name)!
      after.set(name, { ...fresh, enabled: known.enabled })
      drained = pick % 2 === 0
      if (drained && known.enabled) atInstant = () => begin(after.get(name)!)
    } else if (kind === 2) {
      actions.push(bitmapRemove(bitmaps, name))
      after.delete(name)
    } else if (kind === 3 && name !== other) {
      const [into, from] = [after.get(name)!, after.get(other!)!]
      actions.push(bitmapMerge(bitmaps, name, [{ name: other! }]))
      if (from.enabled && !into.enabled) actions.push(bitmapEnable(bitmaps, name))
      actions.push(bitmapRemove(bitmaps, other!))
      for (const one of from.must) into.must.add(one)
      into.enabled ||= from.enabled
      after.delete(other!)
    } else if (kind === 4) {
      actions.push(bitmapEnable(bitmaps, name))
      const known = after.get(name)!
      if (!known.enabled) known.baseline = undefined
      known.enabled = true
    } else {
      await Promise.all([this.opened.node.storeBitmaps(), this.guest(meanwhile)])
      return
    }
    const { graph, node } = this.opened
    const instant = (commits: () => unknown) => {
      commits()
      // What was answered while it was prepared.
      for (const [name, known] of this.#now) {
        const then = after.get(name)
        if (then && kind !== 1) for (const one of known.must) then.must.add(one)
      }
      atInstant?.()
      this.#states = [after, this.#now]
      guest = this.guest(meanwhile)
    }
    await transact(actions, async commits => {
      if (drained) await graph.drained([node], () => this.#answered().then(() => instant(commits)))
      else {
        instant(commits)
        this.#isUnsure = true
        await this.#answered()
        this.#isUnsure = false
      }
    })
    this.#states = [after]
    await guest
  }

  async end() {
    this.#onChange(() => undefined)
    this.#thread?.revoke()
    await this.opened.graph.detach(this.#lender)
    await this.opened.graph[Symbol.asyncDispose]()
  }
}

/** What is wrong with what a new daemon finds, or undefined. */
async function judge(cut: Cut, found: Awaited<ReturnType<typeof openDisk>>): Promise<string | undefined> {
  const content = await readAt(found.node.io, 0, SIZE)
  const problems = cut.states.map(state => {
    const names = [...found.node.bitmaps].map(({ name }) => name!)
    if (names.toSorted().join() !== [...state.keys()].toSorted().join()) return `there are ${names.join()}`
    for (const [name, { enabled, must, baseline }] of state) {
      const bitmap = found.node.bitmaps.find(name)!
      if (bitmap.inconsistent) return `${name} is inconsistent: ${bitmap.problem}`
      if (bitmap.recording !== enabled) return `${name} is ${enabled ? 'not' : ''} enabled`
      for (let granule = 0; granule < GRANULES; granule++) {
        const at = granule * GRANULARITY
        if (bitmap.isDirty(at)) continue
        if (must.has(granule)) return `${name} lacks granule ${granule}, whose write was answered`
        if (baseline && !content.subarray(at, at + GRANULARITY).equals(baseline.subarray(at, at + GRANULARITY)))
          return `${name} lacks granule ${granule}, which has changed`
      }
    }
    return undefined
  })
  return problems.includes(undefined) ? undefined : problems.join('; or: ')
}

const through = <From, To>([image, bitmaps]: Files<From>, make: (from: From) => To): Files<To> =>
  bitmaps === undefined ? [make(image)] : [make(image), make(bitmaps)]

/** Opens what is left, and may lose power again while it is recovered. Returns how many crashes were judged. */
async function recover(cut: Cut, seed: number, times = 2): Promise<number> {
  const logs = new SimulatedFolder(cut.logs)
  if (seed % 3 > 0) {
    const found = await openDisk(
      through(cut.files, bytes => new MemoryNode(bytes)),
      logs,
    )
    const problem = await judge(cut, found)
    if (problem !== undefined) throw new Error(problem)
    await found.graph[Symbol.asyncDispose]()
    return 1
  }
  const files = through(cut.files, bytes => SimulatedDisk.holding(bytes))
  let again: Cut | undefined
  let changes = 0
  const onChange = () => {
    if (++changes !== 1 + (seed % 9)) return
    again = { ...cut, files: through(files, disk => disk.afterCrash(seed)), logs: logs.afterCrash(seed + 1) }
  }
  for (const one of [...files, logs]) if (one) one.onChange = onChange
  const found = await openDisk(files, logs)
  const problem = await judge(cut, found)
  if (problem !== undefined) throw new Error(problem)
  await found.graph[Symbol.asyncDispose]()
  for (const one of [...files, logs]) if (one) one.onChange = () => undefined
  const closed = await openDisk(files, undefined)
  const lost = await judge(cut, closed)
  if (lost !== undefined) throw new Error(`when it was closed after a crash: ${lost}`)
  await closed.graph[Symbol.asyncDispose]()
  return !again || times === 1 ? 1 : 1 + (await recover(again, Math.floor(seed / 9) + 1, times - 1))
}

const write = fc.tuple(
  fc.nat({ max: GRANULES - 1 }),
  fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 9 })),
  fc.nat({ max: 1e6 }),
)

const step = fc.oneof(
  { weight: 3, arbitrary: fc.record({ writes: fc.array(write, { minLength: 1, maxLength: 5 }) }) },
  { weight: 2, arbitrary: fc.record({ verb: fc.nat({ max: 5 }), pick: fc.nat({ max: 9 }) }) },
  {
    weight: 2,
    arbitrary: fc.record({
      verb: fc.nat({ max: 5 }),
      pick: fc.nat({ max: 9 }),
      writes: fc.array(write, { minLength: 1, maxLength: 5 }),
      meanwhile: fc.array(write, { minLength: 1, maxLength: 5 }),
    }),
  },
  { weight: 1, arbitrary: fc.constant('flush' as const) },
)

for (const [format, enough] of [
  ['qcow2', ENOUGH * 0.75],
  ['raw', ENOUGH * 0.25],
] as const)
  t.test(`every granule that has changed is marked after any crash, and verbs have happened or not: ${format}`, async t => {
    let crashes = 0
    const before = SimulatedThread.writes
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, { minLength: 6, maxLength: 14 }),
        fc.integer({ min: 2, max: 5 }),
        fc.nat({ max: 1e6 }),
        async (steps, every, seed) => {
          if (crashes >= enough) return
          const history = await History.begin(format, every, seed)
          await history.verb(0, 0)
          for (const step of steps) {
            if (step === 'flush') await history.flush()
            else
              await Promise.all([
                'writes' in step ? history.guest(step.writes) : undefined,
                'verb' in step ? history.verb(step.verb, step.pick, 'meanwhile' in step ? step.meanwhile : []) : undefined,
              ])
          }
          await history.end()
          if (history.opened.risks.length > 0) throw new Error(history.opened.risks.join('; '))
          if (history.logs.names.length > 0) throw new Error('a log was left')
          for (const [index, cut] of history.cuts.entries()) crashes += await recover(cut, seed + index)
        },
      ),
      { numRuns: MOST_HISTORIES, endOnFailure: true },
    )
    t.ok(crashes >= enough, `${crashes} crashes`)
    t.ok(SimulatedThread.writes > before, `${SimulatedThread.writes - before} writes were made by threads`)
  })
