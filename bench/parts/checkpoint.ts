// How long guests' writes are held by a checkpoint of a whole machine, as it is served: 16 disks in qcow2 with bitmaps that are stored with them, and a client on
// each that writes all the time. What is counted is from the moment at which no write is under way any more until they go on.

import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { NbdClient } from 'nbd-client-ts'
import { Appliance } from '../../src/appliance.ts'
import { createLog } from '../../src/base/log.ts'
import { Graph } from '../../src/block/graph.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { loadSettings } from '../../src/settings/load.ts'

const DISKS = 16
const CHECKPOINTS = 15
const SIZE = 2 ** 34
/** Where guests write: as many blocks of a disk. */
const BLOCKS = 2 ** 14

/** Of each checkpoint, in ms. */
export interface Held {
  /** Beyond the writes that were under way. */
  readonly beyond: readonly number[]
  /** From when the first write waited, those that were under way included. */
  readonly all: readonly number[]
}

const run = promisify(execFile)

export async function checkpointsOfAMachine(under: string): Promise<Held> {
  await using stack = new AsyncDisposableStack()
  const folder = await mkdtemp(join(under, 'checkpoint-'))
  stack.defer(() => rm(folder, { recursive: true }))
  const disks = Array.from({ length: DISKS }, (_, index) => `disk${index}`)
  for (const disk of disks) await run('qemu-img', ['create', '-q', '-f', 'qcow2', join(folder, `${disk}.qcow2`), String(SIZE)])
  await writeFile(
    join(folder, 'stillpoint.yaml'),
    `state: ./state
control: { socket: ./control.sock }
nbd: [ { unix: ./nbd.sock } ]
machines: { db: { disks: { ${disks.map(disk => `${disk}: { image: ./${disk}.qcow2, format: qcow2 }`).join(', ')} } } }
`,
  )
  using held = watchDrains()
  const log = createLog('error', process.stderr, { journal: true })
  stack.use(await Appliance.start(await loadSettings(join(folder, 'stillpoint.yaml')), log))
  const qmp = stack.use(await QmpClient.connect(join(folder, 'control.sock')))
  let writing = true
  const guests = disks.map(async (disk, index) => {
    await using guest = await NbdClient.connect(`nbd+unix:///db/${disk}?socket=${join(folder, 'nbd.sock')}`)
    const data = Buffer.alloc(4096, index + 1)
    for (let at = index; writing; at = (at * 1_103_515_245 + 12_345) % BLOCKS) await guest.write(at * 4096, data)
  })
  held.forget()
  for (let count = 0; count < CHECKPOINTS; count++) await qmp.execute('checkpoint-create', { machine: 'db', name: `c${count}` })
  writing = false
  await Promise.all(guests)
  return held
}

/** What drains all of the disks is a checkpoint. */
function watchDrains(): Held & Disposable & { forget(): void } {
  // oxlint-disable-next-line typescript/unbound-method -- it is called with the graph, and put back
  const { drained } = Graph.prototype
  const held = { beyond: [] as number[], all: [] as number[] }
  Graph.prototype.drained = async function (this: Graph, nodes, moment) {
    const begun = performance.now()
    let idle: number | undefined
    try {
      return await drained.call(this, nodes, () => {
        idle = performance.now()
        return moment()
      })
    } finally {
      if (idle !== undefined && [...(nodes ?? [])].length >= DISKS) {
        held.beyond.push(performance.now() - idle)
        held.all.push(performance.now() - begun)
      }
    }
  } as typeof drained
  return {
    ...held,
    forget() {
      held.beyond.length = held.all.length = 0
    },
    [Symbol.dispose]() {
      Graph.prototype.drained = drained
    },
  }
}
