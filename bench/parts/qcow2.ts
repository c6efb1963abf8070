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

const onFull: readonly [what: string, load: Omit<Load, 'size'>][] = [
  ['read 256 KiB in order, 4 at a time', { rw: 'read', block: 256 * KiB, depth: 4, seconds: 1 }],
  ['write 256 KiB in order, 4 at a time', { rw: 'write', block: 256 * KiB, depth: 4, seconds: 1 }],
  ['read 4 KiB anywhere, one at a time', { rw: 'randread', block: 4 * KiB, depth: 1, seconds: 1 }],
  ['read 4 KiB anywhere, 32 at a time', { rw: 'randread', block: 4 * KiB, depth: 32, seconds: 1 }],
  ['write 4 KiB anywhere, one at a time', { rw: 'randwrite', block: 4 * KiB, depth: 1, seconds: 1 }],
  ['write 4 KiB anywhere, 32 at a time', { rw: 'randwrite', block: 4 * KiB, depth: 32, seconds: 1 }],
]

const onEmpty: readonly [what: string, load: Omit<Load, 'size'>][] = [
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
    {
      await using stack = new AsyncDisposableStack()
      const uris = await Promise.all(NAMES.map(name => serve(stack, folder, name, full)))
      for (const [what, load] of onFull) {
        const ratios: number[] = []
        const ours: number[] = []
        for (let round = 0; round < rounds; round++) {
          const rates = await inTurns(round, at => fio(uris[at]!, { ...load, size: FULL }))
          ratios.push(rates[0]! / rates[1]!)
          ours.push(rates[0]!)
        }
        add(what, ratios, ours)
      }
    }
    for (const [what, load] of onEmpty) {
      const ratios: number[] = []
      const ours: number[] = []
      for (let round = 0; round < rounds; round++) {
        const rates = await inTurns(round, async at => {
          await using stack = new AsyncDisposableStack()
          return await fio(await serve(stack, folder, NAMES[at]!, empty), { ...load, size: EMPTY })
        })
        ratios.push(rates[0]! / rates[1]!)
        ours.push(rates[0]!)
      }
      add(what, ratios, ours)
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

/** A copy of the image, served until the stack ends. Returns the address. */
async function serve(stack: AsyncDisposableStack, folder: string, name: ServerName, image: string) {
  const copy = join(folder, `${name}.qcow2`)
  const socket = join(folder, `${name}.sock`)
  await copyFile(image, copy)
  stack.defer(() => rm(copy))
  stack.defer(() => rm(socket, { force: true }))
  const { uri } = await startServer(stack, name, socket, [`driver=qcow2,node-name=disk,file.driver=file,file.filename=${copy}`])
  return uri
}
