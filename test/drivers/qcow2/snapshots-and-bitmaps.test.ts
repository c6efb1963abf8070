// Internal snapshots that are made and deleted while bitmaps are stored and space is set aside for them, which happens without any guest: each counts
// the clusters that the other has taken.

import t from 'tap'
import { checkImage } from '../../../src/drivers/qcow2/check/check.ts'
import type { Qcow2Node } from '../../../src/drivers/qcow2/qcow2-node.ts'
import { whenFree } from '../../../src/transactions/when-free.ts'
import { MemoryNode } from '../../helpers/memory-node.ts'
import fc from '../../helpers/property.ts'
import { newImage, openQcow2 } from '../../helpers/qcow2-image.ts'
import { randomBytes } from '../../helpers/random-bytes.ts'

const CLUSTER = 512
const SIZE = 256 * CLUSTER
const SHAPES = ['a', 'b'].map(name => ({ name, granularity: CLUSTER, enabled: true }))
const [A, B] = SHAPES as [(typeof SHAPES)[number], (typeof SHAPES)[number]]

const snapshots = {
  async create({ snapshots }: Qcow2Node, name: string) {
    await snapshots.create(name, new Date(0))
  },
  async delete({ snapshots }: Qcow2Node) {
    const [oldest] = await snapshots.list()
    if (oldest) await snapshots.delete(oldest.id)
  },
}

const bits = randomBytes(SIZE / CLUSTER / 8, 1)
const stored = (shape: typeof A) => ({
  ...shape,
  inUse: false,
  byteLength: bits.length,
  readBytes: (offset: number, length: number) => bits.subarray(offset, offset + length),
})
const bitmaps = {
  reserve: ({ bitmapStore }: Qcow2Node) => bitmapStore.reserve([A, B]),
  'reserve one': ({ bitmapStore }: Qcow2Node) => bitmapStore.reserve([A]),
  'reserve none': ({ bitmapStore }: Qcow2Node) => bitmapStore.reserve([]),
  store: ({ bitmapStore }: Qcow2Node) => bitmapStore.store({ stored: SHAPES.map(stored), removed: [], session: undefined }),
  remove: ({ bitmapStore }: Qcow2Node) => bitmapStore.store({ stored: [], removed: ['a', 'b'], session: undefined }),
}

async function after(turns: number, work: () => Promise<unknown>) {
  for (let turn = 0; turn < turns; turn++) await new Promise(setImmediate)
  await work()
}

const names = <Name extends string>(of: Readonly<Record<Name, unknown>>) => fc.constantFrom(...(Object.keys(of) as Name[]))

t.test('a snapshot and bitmaps that are stored meanwhile lose nothing of each other, and nothing leaks', async () => {
  const step = fc.record({
    writes: fc.array(fc.nat(SIZE / CLUSTER - 1), { maxLength: 4 }),
    snapshot: names(snapshots),
    bitmap: names(bitmaps),
    /** Turns of the event loop by which the bitmaps come later; or earlier. */
    later: fc.integer({ min: -12, max: 60 }),
    flush: fc.boolean(),
  })
  await fc.assert(
    fc.asyncProperty(
      fc.array(step, { minLength: 1, maxLength: 8 }),
      fc.array(fc.nat(3), { minLength: 1 }),
      async (steps, pauses) => {
        const file = new MemoryNode(Buffer.alloc(0))
        const node = await newImage(file, { size: SIZE, clusterSize: CLUSTER })
        let request = 0
        file.pause = async () => {
          for (let turn = pauses[request++ % pauses.length]!; turn > 0; turn--) await new Promise(setImmediate)
        }
        for (const [at, { writes, snapshot, bitmap, later, flush }] of steps.entries()) {
          for (const cluster of writes) await node.write(cluster * CLUSTER, randomBytes(CLUSTER, at))
          await Promise.all([
            after(later, () => bitmaps[bitmap](node)),
            after(-later, () => snapshots[snapshot](node, `s${at}`)),
            flush && node.flush(),
          ])
        }
        await node.bitmapStore.reserve([])
        await node[Symbol.asyncDispose]()
        await using again = await openQcow2(file)
        const { corruptions, leaks, messages } = await checkImage(again.image)
        if (corruptions + leaks > 0) throw new Error(messages.join('; '))
      },
    ),
    { numRuns: 150 },
  )
})

t.test(
  'guests are not held while a snapshot waits for bitmaps that are being stored, nor for those that come just then',
  async t => {
    const file = new MemoryNode(Buffer.alloc(0))
    const node = await newImage(file, { size: SIZE, clusterSize: CLUSTER })
    await node.write(0, randomBytes(CLUSTER, 1))
    /** From now on requests of the file wait for this. */
    const gate = () => {
      const { promise, resolve } = Promise.withResolvers<void>()
      file.pause = () => promise
      return resolve
    }
    const told: string[] = []
    let open = gate()
    let storing = bitmaps.store(node)
    const made = whenFree({
      approach: async () => {
        told.push('waits')
        await node.snapshots.ready()
      },
      isHeldUp: () => node.snapshots.isHeldUp(),
      async drained(moment) {
        told.push('writes are held')
        if (told.length === 2) {
          open = gate()
          storing = bitmaps.reserve(node)
        }
        await moment()
        told.push('writes go on')
      },
      async moment() {
        told.push('is made')
        await snapshots.create(node, 's')
      },
    })
    await after(50, async () => t.strictSame(told, ['waits']))
    open()
    await storing
    await after(50, async () => t.strictSame(told, ['waits', 'writes are held', 'writes go on', 'waits']))
    open()
    await Promise.all([storing, made])
    t.strictSame(told.slice(4), ['writes are held', 'is made', 'writes go on'])
    t.match(await node.snapshots.list(), [{ name: 's' }])
    await node.bitmapStore.reserve([])
    await node[Symbol.asyncDispose]()
  },
)
