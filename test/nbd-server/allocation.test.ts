// base:allocation against the bytes: what it calls zero is zero, while others write beside it. And what CACHE makes of holes.

import { copyFile, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import fc from '../helpers/property.ts'
import { NbdClient } from 'nbd-client-ts'
import { Allocation, Command } from 'nbd-client-ts/protocol'
import t from 'tap'
import { createLog } from '../../src/base/log.ts'
import { Turns } from '../../src/base/turns.ts'
import type { Extent } from '../../src/block/driver.ts'
import { Graph } from '../../src/block/graph.ts'
import { drivers } from '../../src/drivers/index.ts'
import { filters } from '../../src/filters/index.ts'
import { Exports } from '../../src/nbd-server/exports.ts'
import { NodeExports } from '../../src/nbd-server/node-exports.ts'
import { NbdServer } from '../../src/nbd-server/server.ts'
import { scratchFolder } from '../helpers/control.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import { flags, go, RawPeer, request } from '../helpers/nbd-wire.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { exportOf, serve } from '../helpers/served.ts'
import { missing, run } from '../helpers/tools.ts'

/** Of each writer; no multiple of any block, so that neighbours share blocks and clusters. */
const AREA = 200_001
const WRITERS = 3
const MIB = 1 << 20
const SIZE = Math.ceil((AREA * WRITERS) / 512) * 512
const BASE = 'base:allocation'

const change = fc.record({
  kind: fc.constantFrom('write', 'write zeroes', 'zero', 'zero, no hole', 'trim'),
  offset: fc.nat(AREA - 1),
  length: fc.oneof(fc.integer({ min: 1, max: 5000 }), fc.integer({ min: 1, max: AREA })),
})
type Change = typeof change extends fc.Arbitrary<infer T> ? T : never
const writers = fc.tuple(...Array.from({ length: WRITERS }, () => fc.array(change, { minLength: 1, maxLength: 6 })))

/** The export of a file that was made for it, over NBD. */
async function exported(options: { driver: string; file: object }, folder: string, stack: AsyncDisposableStack) {
  const graph = stack.use(new Graph([...drivers, ...filters]))
  const log = createLog('silent')
  const nodes = stack.use(new NodeExports({ graph, emit: () => undefined, turns: new Turns(), log }))
  const exports = new Exports()
  const node = await graph.open({ ...options, 'node-name': 'disk', discard: 'unmap' })
  await nodes.add(exports, { id: 'disk', name: 'disk', node, writable: true })
  const socket = join(folder, 'nbd.sock')
  stack.use(await NbdServer.listen({ unix: socket }, { exports, log }))
  return `nbd+unix:///disk?socket=${socket}`
}

async function work(uri: string, area: number, changes: readonly Change[]) {
  await using client = await NbdClient.connect(uri, { contexts: [BASE] })
  const known = await client.read(area, AREA)
  for (const { kind, offset, length: wanted } of changes) {
    const length = Math.min(wanted, AREA - offset)
    const data = kind === 'write' ? randomBytes(length, offset) : Buffer.alloc(length)
    if (kind.startsWith('write')) await client.write(area + offset, data)
    else if (kind === 'trim') await client.trim(area + offset, length)
    else await client.zero(area + offset, length, { noHole: kind !== 'zero' })
    const said: string[] = []
    const now = Buffer.alloc(AREA)
    const zero: [from: number, to: number][] = []
    for await (const { offset: at, length: size, status } of client.extents({ offset: area, length: AREA })) {
      const bits = status[BASE]!
      if ((bits & ~(Allocation.HOLE | Allocation.ZERO)) !== 0) throw new Error(`the status ${bits} of ${size} bytes at ${at}`)
      if ((bits & Allocation.ZERO) !== 0) zero.push([at - area, at - area + size])
      said.push(`${at - area}+${size}: ${bits}`)
    }
    await client.read(area, now)
    if (kind === 'trim')
      now.copy(known, offset, offset, offset + length) // which may read as anything
    else data.copy(known, offset)
    const where = `after ${kind} of ${length} at ${offset} (${said.join(', ')})`
    if (!now.equals(known)) throw new Error(`other bytes than were written, ${where}`)
    for (const [from, to] of zero)
      if (now.subarray(from, to).some(byte => byte !== 0)) throw new Error(`${from} to ${to} is not zero, ${where}`)
  }
}

t.test(
  'what base:allocation calls zero reads as zeroes, while others write beside it',
  { skip: missing('qemu-img') },
  async t => {
    await using files = new AsyncDisposableStack()
    const folder = await scratchFolder(files)
    const at = (name: string) => join(folder, name)
    await writeFile(at('below'), randomBytes(SIZE, 9))
    await truncate(at('below'), SIZE)
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', at('plain'), String(SIZE)])
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', at('below'), '-F', 'raw', at('over'), String(SIZE)])
    await writeFile(at('raw'), '')
    await truncate(at('raw'), SIZE)
    for (const [name, driver] of [
      ['raw', 'raw'],
      ['plain', 'qcow2'],
      ['over', 'qcow2'],
    ] as const) {
      await fc.assert(
        fc.asyncProperty(writers, async all => {
          await copyFile(at(name), at('image'))
          await using stack = new AsyncDisposableStack()
          const uri = await exported({ driver, file: { driver: 'file', filename: at('image') } }, folder, stack)
          await Promise.all(all.map((changes, index) => work(uri, index * AREA, changes)))
        }),
        { numRuns: 6 },
      )
      t.pass(`${name} image`)
    }
  },
)

t.test('CACHE reads what the disk holds, and of its holes only small ones and those of other layers', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(Buffer.alloc(4 * MIB))
  const hole = { allocated: false, zero: true }
  const all: Extent[] = [
    { offset: 0, length: MIB, ...hole },
    { offset: MIB, length: 4096, allocated: true, zero: false },
    { offset: MIB + 4096, length: 8192, ...hole },
    { offset: MIB + 12_288, length: 4096, allocated: true, zero: false },
    { offset: MIB + 16_384, length: MIB - 16_384, ...hole },
    { offset: 2 * MIB, length: MIB, ...hole, depth: 2 },
    { offset: 3 * MIB, length: MIB, ...hole, depth: 0 },
  ]
  node.extents = async function* ({ offset }) {
    yield* all.filter(extent => extent.offset >= offset)
  }
  const { socket } = await serve([exportOf(node)], stack)
  for (const length of [4 * MIB, 1000]) {
    await using peer = await RawPeer.connect(socket)
    await peer.send(flags(3), go('disk'), request({ type: Command.CACHE, length }), request({ type: Command.DISC }))
    await peer.rest()
  }
  t.same(node.requests, [
    { kind: 'read', offset: MIB, length: 16_384 },
    { kind: 'read', offset: 2 * MIB, length: MIB },
    { kind: 'read', offset: 3 * MIB, length: MIB },
    { kind: 'read', offset: 0, length: 1000 },
  ])
})
