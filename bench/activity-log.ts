// What the activity log costs: 4 KiB writes all over a disk, with a persistent bitmap that records, with the log and without, in turns.
//
// By hand: scripts/on-node-24 dist/bench/activity-log.js. The log fills once between two stores of the bitmaps, which are minutes apart; so
// that is measured alone, and what it costs when it is full.

import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ActivityFolder } from '../src/bitmaps/activity-folder.ts'
import { bitmapAdd } from '../src/bitmaps/actions.ts'
import { Graph } from '../src/block/graph.ts'
import { ALL, Permission } from '../src/block/permissions.ts'
import { drivers } from '../src/drivers/index.ts'
import { createImage } from '../src/drivers/qcow2/create.ts'
import { transact } from '../src/transactions/transact.ts'

const SIZE = 1 << 30
const DEPTH = 16
const BLOCK = 4096
const SECONDS = 2
const ROUNDS = 5
/** Seconds. */
const BETWEEN_STORES = 180

async function openDisk(folder: string, name: string, logged: boolean) {
  const graph = new Graph(drivers, { logs: logged ? new ActivityFolder(join(folder, 'activity')) : undefined })
  const filename = join(folder, name)
  await writeFile(filename, '')
  const below = await graph.add({ driver: 'file', 'node-name': 'file', filename })
  const edge = graph.attach(below, { description: 'qcow2', perm: Permission.write | Permission.resize, shared: ALL })
  await createImage(edge, { size: SIZE, preallocation: 'falloc' })
  await graph.detach(edge)
  const node = await graph.add({ driver: 'qcow2', 'node-name': 'disk', file: 'file' })
  const bitmaps = () => node.bitmaps
  await transact([bitmapAdd(bitmaps, { name: 'b', persistent: true })], async commits => commits())
  const guest = graph.attach(node, { description: 'a guest', perm: Permission.write, shared: ALL })
  return { graph, node, guest }
}

type Disk = Awaited<ReturnType<typeof openDisk>>

/** Writes for so long, and says how many a second. */
async function measure({ guest }: Disk, seconds: number) {
  const data = Buffer.alloc(BLOCK, 7)
  const begun = performance.now()
  const end = begun + seconds * 1000
  let count = 0
  await Promise.all(
    Array.from({ length: DEPTH }, async () => {
      while (performance.now() < end) {
        await guest.write(BLOCK * Math.floor(Math.random() * (SIZE / BLOCK)), data)
        count++
      }
    }),
  )
  return count / ((performance.now() - begun) / 1000)
}

const median = (numbers: readonly number[]) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)]!

/** How many writes a second there are with the log, as a part of those without. */
async function compare(logged: Disk, plain: Disk, seconds: number, emptied: boolean) {
  const ratios: number[] = []
  for (let round = 0; round < ROUNDS; round++) {
    const rates = new Map<Disk, number>()
    for (const disk of round % 2 === 0 ? [logged, plain] : [plain, logged]) {
      await disk.guest.flush()
      if (emptied) await disk.node.storeBitmaps()
      rates.set(disk, await measure(disk, seconds))
    }
    ratios.push(rates.get(logged)! / rates.get(plain)!)
  }
  process.stdout.write(
    `${emptied ? 'from an empty log on' : 'with a full log'}, ${seconds} s: ${ratios.map(one => one.toFixed(2)).join(' ')}\n`,
  )
  return median(ratios)
}

const folder = await mkdtemp(join(tmpdir(), 'stillpoint-bench-'))
try {
  const logged = await openDisk(folder, 'logged.qcow2', true)
  const plain = await openDisk(folder, 'plain.qcow2', false)
  const filling = await compare(logged, plain, SECONDS, true)
  const { regions, syncs } = logged.node.activity!
  const full = await compare(logged, plain, SECONDS, false)
  const lost = Math.max(0, 1 - filling) * SECONDS
  process.stdout.write(
    `${regions} regions after ${Math.round(syncs / ROUNDS)} syncs, for which ${lost.toFixed(2)} s of writes are lost in ${BETWEEN_STORES} s; ` +
      `all in all ${(100 * (1 - full + lost / BETWEEN_STORES)).toFixed(1)} % fewer writes\n`,
  )
  await logged.graph[Symbol.asyncDispose]()
  await plain.graph[Symbol.asyncDispose]()
} finally {
  await rm(folder, { recursive: true })
}
