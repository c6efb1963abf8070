// The bitmaps of raw images: kept beside them, read by QEMU's tools, and mistrusted where something else has written to the image.

import { appendFile, cp, open as openFile, stat, truncate, utimes, writeFile } from 'node:fs/promises'
import t from 'tap'
import { ActivityFolder } from '../../src/bitmaps/activity-folder.ts'
import { bitmapAdd, bitmapRemove } from '../../src/bitmaps/actions.ts'
import type { Action } from '../../src/block/action.ts'
import { Graph } from '../../src/block/graph.ts'
import { ALL, Permission } from '../../src/block/permissions.ts'
import { drivers } from '../../src/drivers/index.ts'
import { Sidecar } from '../../src/drivers/raw-bitmaps.ts'
import { filters } from '../../src/filters/index.ts'
import { transact } from '../../src/transactions/transact.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import { missing, qemuCheck, qemuImg, scratchFolder } from '../helpers/qemu.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { SimulatedDisk } from '../helpers/simulated-disk.ts'

const skip = missing('qemu-img')
const MiB = 1 << 20

async function world(stack: AsyncDisposableStack, size = 64 * MiB) {
  const folder = await scratchFolder(stack)
  await writeFile(`${folder}/disk.raw`, '')
  await truncate(`${folder}/disk.raw`, size)
  await writeFile(`${folder}/disk.qcow2`, '')
  return worldIn(folder)
}

function worldIn(folder: string) {
  const disk = `${folder}/disk.raw`
  const sidecar = `${folder}/disk.qcow2`
  const open = async (more: object = {}) => {
    const graph = new Graph([...drivers, ...filters], { logs: new ActivityFolder(`${folder}/activity`) })
    const node = await graph.add({
      driver: 'raw',
      'node-name': 'disk',
      file: { driver: 'file', filename: disk },
      bitmaps: { driver: 'file', filename: sidecar },
      ...more,
    })
    const edge = () => graph.attach(node, { description: 'a guest', perm: Permission.write | Permission.resize, shared: ALL })
    return {
      graph,
      node,
      edge,
      do: (...actions: Action[]) => transact(actions, commits => graph.drained([node], commits)),
      close: () => graph[Symbol.asyncDispose](),
    }
  }
  return { folder, disk, sidecar, open }
}

const add = (node: { bitmaps: Parameters<typeof bitmapAdd>[0] extends () => infer T ? T : never }, name: string) =>
  bitmapAdd(() => node.bitmaps, { name, persistent: true, granularity: 65536 })

t.test('where its file could not be made for lack of room, a disk is opened as soon as there is some', async t => {
  await using stack = new AsyncDisposableStack()
  const { sidecar, open } = await world(stack)
  const below = { driver: 'file', filename: sidecar }
  const rule = { event: 'none', iotype: 'write', errno: 28, once: true }
  await t.rejects(open({ bitmaps: { driver: 'blkdebug', image: below, 'inject-error': [rule] } }), /No space left/)
  const it = await open()
  await it.close()
})

t.test('where the power goes while its file is made, a disk is opened when it is back', async t => {
  const disk = new MemoryNode(Buffer.alloc(3 * MiB))
  const context = { readOnly: false, report: () => undefined, filename: '/a/disk.raw' }
  let steps = 0
  for (let isMade = false; !isMade; steps++) {
    const file = new SimulatedDisk()
    let left = steps
    file.onChange = () => {
      if (--left < 0) throw new Error('no power')
    }
    try {
      await (await Sidecar.open(file, disk, context))[Symbol.asyncDispose]()
      isMade = true
    } catch {
      t.ok(left < 0)
    }
    for (let seed = 0; seed < 8; seed++) {
      await using it = await Sidecar.open(SimulatedDisk.holding(file.afterCrash(seed)), disk, context)
      t.same((await it.load()).bitmaps, [])
    }
  }
  t.ok(steps > 6)
  const another = SimulatedDisk.holding(Buffer.concat([Buffer.alloc(MiB), Buffer.from('of somebody else')]))
  await t.rejects(Sidecar.open(another, disk, context), /not in qcow2 format/)
})

t.test('a raw image keeps its bitmaps over a restart, and QEMU reads them', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const { sidecar, disk, open } = await world(stack)
  let it = await open()
  await it.do(add(it.node, 'b'))
  const guest = it.edge()
  await guest.write(5 * MiB, randomBytes(100_000, 1))
  await guest.write(63 * MiB, randomBytes(MiB, 2))
  const sha = it.node.bitmaps.get('b').sha256()
  await it.close()

  const info = JSON.parse(await qemuImg('info', '--output=json', sidecar)) as {
    'virtual-size': number
    'format-specific': { data: { bitmaps: object[]; 'data-file': string; 'data-file-raw': boolean } }
  }
  t.equal(info['virtual-size'], 64 * MiB)
  t.match(info['format-specific'].data, { 'data-file': disk, 'data-file-raw': true })
  t.same(info['format-specific'].data.bitmaps, [{ name: 'b', granularity: 65536, flags: ['auto'] }])
  t.equal(await qemuCheck(sidecar), '')
  t.equal(await qemuImg('compare', '-f', 'qcow2', '-F', 'raw', sidecar, disk), 'Images are identical.\n')
  await qemuImg('bitmap', '--add', '--granularity', '64k', sidecar, 'merged')
  await qemuImg('bitmap', '--merge', 'b', sidecar, 'merged')

  it = await open()
  t.match(it.node.bitmaps.get('b').info(), { persistent: true, recording: true, count: 65536 * (2 + 16) })
  t.equal(it.node.bitmaps.get('b').sha256(), sha)
  t.equal(it.node.bitmaps.get('merged').sha256(), sha, 'as QEMU has read and copied it')
  await it.close()
})

t.test('what was written by something else is missed by no bitmap: they are inconsistent, and say why', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const { disk, open } = await world(stack)
  let it = await open()
  await it.do(add(it.node, 'b'))
  await it.edge().write(0, randomBytes(4096, 1))
  await it.close()
  const { mtime, atime } = await stat(disk)

  {
    await using file = await openFile(disk, 'r+')
    await file.write(randomBytes(512, 3), 0, 512, 8 * MiB)
  }
  await utimes(disk, atime, new Date(mtime.getTime() + 5000))
  it = await open()
  t.match(it.node.bitmaps.get('b'), { inconsistent: true, problem: /something else has written to it/ })
  await it.do(add(it.node, 'c'))
  await it.close()

  it = await open()
  t.ok(it.node.bitmaps.get('b').inconsistent, 'and that is not forgotten when another is stored')
  t.notOk(it.node.bitmaps.get('c').inconsistent)
  await it.do(bitmapRemove(() => it.node.bitmaps, 'b'))
  await it.close()

  await appendFile(disk, randomBytes(MiB, 4))
  it = await open()
  t.match(it.node.bitmaps.get('c'), { inconsistent: true, problem: /had 67108864 bytes .* has 68157440/ })
  t.equal(it.node.size, 65 * MiB)
  await it.close()
})

for (const unchanged of [false, true]) {
  const write = unchanged ? 'a write that changes nothing that is seen' : 'a write'
  t.test(`${write} while no bitmap records is no other's, after an orderly end and after a crash`, { skip }, async t => {
    await using stack = new AsyncDisposableStack()
    const { folder, open } = await world(stack)
    let it = await open()
    await it.do(add(it.node, 'b'))
    await it.edge().write(5 * MiB, randomBytes(4096, 1))
    it.node.bitmaps.disable(it.node.bitmaps.get('b'))
    const sha = it.node.bitmaps.get('b').sha256()
    await it.close()

    for (const crashes of [true, false]) {
      it = await open()
      t.notOk(it.node.bitmaps.get('b').inconsistent)
      await it.edge().write(20 * MiB, randomBytes(4096, 2), { unchanged })
      if (crashes) {
        const after = await scratchFolder(stack)
        await cp(folder, after, { recursive: true })
        const found = await worldIn(after).open()
        const bitmap = found.node.bitmaps.get('b')
        t.match(bitmap.info(), { recording: false, count: 65536 })
        t.equal(bitmap.problem, undefined)
        await found.close()
      }
      await it.close()
    }
    it = await open()
    t.equal(it.node.bitmaps.get('b').problem, undefined)
    t.equal(it.node.bitmaps.get('b').sha256(), sha)
    await it.close()
  })
}

t.test('the bitmaps grow and shrink with the disk', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const { sidecar, disk, open } = await world(stack, 10 * MiB + 100)
  let it = await open()
  await it.do(add(it.node, 'b'))
  for (const size of [30 * MiB, 20 * MiB + 7, 100 * MiB]) {
    await it.graph.resize(it.node, size)
    await it.close()
    t.equal(await qemuCheck(sidecar), '')
    t.equal(await qemuImg('compare', '-f', 'qcow2', '-F', 'raw', sidecar, disk), 'Images are identical.\n')
    it = await open()
    t.notOk(it.node.bitmaps.get('b').inconsistent, `at ${size} bytes`)
  }
  const bitmap = it.node.bitmaps.get('b')
  t.ok(bitmap.isDirty(11 * MiB) && bitmap.isDirty(99 * MiB), 'what it grew by counts as written')
  t.notOk(bitmap.isDirty(5 * MiB))
  await it.close()
})

t.test('a disk that is opened to read only, and to write again, keeps its bitmaps', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const { sidecar, open } = await world(stack)
  const it = await open()
  await it.do(add(it.node, 'b'))
  const guest = it.edge()
  await guest.write(5 * MiB, randomBytes(100_000, 1))
  const sha = it.node.bitmaps.get('b').sha256()
  await t.rejects(
    it.graph.setReadOnly(it.node, true),
    { message: /cannot support read-write users/ },
    'not while somebody may write',
  )
  await it.graph.detach(guest)
  await it.graph.setReadOnly(it.node, true)
  t.match(it.node, { readOnly: true })
  t.equal(it.node.bitmaps.get('b').sha256(), sha)
  t.ok(it.node.bitmaps.get('b').readOnly)
  t.match(await qemuImg('info', sidecar), /name: b/, 'while it is read-only, all is in the file')
  await it.graph.setReadOnly(it.node, false)
  t.notOk(it.node.bitmaps.get('b').readOnly)
  await it.edge().write(20 * MiB, randomBytes(1000, 1))
  t.ok(it.node.bitmaps.get('b').isDirty(20 * MiB))
  await it.close()
})

t.test('what is no file for bitmaps is refused', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const { sidecar, folder, open } = await world(stack)
  await t.rejects(open({ bitmaps: { driver: 'file', filename: `${folder}/nowhere` } }), { message: /No such file/ })
  await t.rejects(open({ 'read-only': true }), { message: /is empty/ })
  await t.rejects(open({ size: MiB }), { message: /leave 'offset' and 'size' out/ })
  await qemuImg('create', '-q', '-f', 'qcow2', sidecar, '64M')
  await t.rejects(open(), { message: /data of its own/ })
  await writeFile(sidecar, randomBytes(10_000, 5))
  await t.rejects(open(), { message: /not a qcow2 image|not in qcow2 format/i })
})
