// qcow2 over NBD: our server against qemu-storage-daemon, on images that qemu-img made, each with the same load in turns.

import { copyFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { run } from '../demo/tools.ts'
import { fio, type Load } from '../fio.ts'
import { median, spread, type Part } from '../report.ts'
import { startServer, type ServerName } from '../servers.ts'

const KiB = 1024
const MiB = 2 ** 20
const GiB = 2 ** 30

const NAMES: readonly ServerName[] = ['stillpoint', 'qemu-storage-daemon']

/** Of a disk that holds data everywhere. */
const FULL = 256 * MiB
/** Of one that holds nothing, larger than what is written. */
const EMPTY = 8 * GiB

type Loads = readonly (readonly [what: string, load: Omit<Load, 'size'>])[]

const onFull: Loads = [
  ['read 256 KiB in order, 4 at a time', { rw: 'read', block: 256 * KiB, depth: 4, seconds: 1 }],
  ['write 256 KiB in order, 4 at a time', { rw: 'write', block: 256 * KiB, depth: 4, seconds: 1 }],
  ['read 4 KiB anywhere, one at a time', { rw: 'randread', block: 4 * KiB, depth: 1, seconds: 1 }],
  ['read 4 KiB anywhere, 32 at a time', { rw: 'randread', block: 4 * KiB, depth: 32, seconds: 1 }],
  ['write 4 KiB anywhere, one at a time', { rw: 'randwrite', block: 4 * KiB, depth: 1, seconds: 1 }],
  ['write 4 KiB anywhere, 32 at a time', { rw: 'randwrite', block: 4 * KiB, depth: 32, seconds: 1 }],
]

const onEmpty: Loads = [
  ['allocate: write 4 KiB anywhere, 32 at a time', { rw: 'randwrite', block: 4 * KiB, depth: 32, requests: 12_000 }],
  [
    'allocate: write 4 KiB anywhere, a flush after 16',
    { rw: 'randwrite', block: 4 * KiB, depth: 16, requests: 2000, flushEvery: 16 },
  ],
  ['allocate: write 256 KiB in order, 4 at a time', { rw: 'write', block: 256 * KiB, depth: 4, requests: 1000 }],
]

export const qcow2: Part = {
  name: 'qcow2',
  title: 'qcow2 over NBD: requests per second, ours over those of qemu-storage-daemon',
  async measure(report, { rounds, folder }) {
    report.begin(this.title)
    const empty = join(folder, 'empty.qcow2')
    const full = join(folder, 'full.qcow2')
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', empty, String(EMPTY)])
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', full, String(FULL)])
    await run('qemu-io', ['-f', 'qcow2', '-c', `write -q -P 7 0 ${FULL}`, full])
    await measureAll(onFull, full, FULL, 'one')
    await measureAll(onEmpty, empty, EMPTY, 'one each')

    /** With an image for all rounds, or with a new one for each: then what is allocated once is not there again. */
    async function measureAll(loads: Loads, image: string, size: number, images: 'one' | 'one each') {
      for (const [what, load] of loads) {
        await using stack = new AsyncDisposableStack()
        const disks = Array.from({ length: images === 'one' ? 1 : rounds + 1 }, (_, at) => `disk${at}`)
        const served = await Promise.all(NAMES.map(name => serve(stack, folder, name, image, disks)))
        const rateOf = (at: number, round: number) => fio(served[at]!.uriOf(disks[round % disks.length]!), { ...load, size })
        // A daemon has run for weeks when a guest writes: what V8 does at first is not what is asked. One round counts for neither.
        await inTurns(0, at => rateOf(at, rounds))
        const ratios: number[] = []
        const ours: number[] = []
        for (let round = 0; round < rounds; round++) {
          const rates = await inTurns(round, at => rateOf(at, round))
          ratios.push(rates[0]! / rates[1]!)
          ours.push(rates[0]!)
        }
        add(what, ratios, ours)
      }
    }

    function add(what: string, ratios: number[], ours: number[]) {
      report.add({
        what: `${what} (${Math.round(median(ours))}/s)`,
        value: spread(ratios),
        goal: '>= 1',
        reached: median(ratios) >= 1,
      })
    }
  },
}

/** Both, the other one first every other time. */
async function inTurns(round: number, measure: (at: number) => Promise<number>): Promise<number[]> {
  const rates: number[] = []
  for (const at of round % 2 === 0 ? [0, 1] : [1, 0]) rates[at] = await measure(at)
  return rates
}

/** Copies of the image, served until the stack ends. */
async function serve(stack: AsyncDisposableStack, folder: string, name: ServerName, image: string, disks: readonly string[]) {
  const socket = join(folder, `${name}.sock`)
  stack.defer(() => rm(socket, { force: true }))
  const nodes: string[] = []
  for (const disk of disks) {
    const copy = join(folder, `${name}-${disk}.qcow2`)
    await copyFile(image, copy)
    stack.defer(() => rm(copy))
    nodes.push(`driver=qcow2,node-name=${disk},file.driver=file,file.filename=${copy}`)
  }
  return await startServer(stack, name, socket, nodes, disks)
}
