// Persistent bitmaps: what a node keeps with its image while it is open, when it is closed and after a crash.

import { existsSync, readdirSync } from 'node:fs'
import { copyFile, mkdir } from 'node:fs/promises'
import t from 'tap'
import { ActivityFolder } from '../../src/bitmaps/activity-folder.ts'
import { bitmapAdd, bitmapClear, bitmapDisable, bitmapEnable, bitmapMerge, bitmapRemove } from '../../src/bitmaps/actions.ts'
import type { Action } from '../../src/block/action.ts'
import { Graph } from '../../src/block/graph.ts'
import { ALL, Permission } from '../../src/block/permissions.ts'
import { drivers } from '../../src/drivers/index.ts'
import { transact } from '../../src/transactions/transact.ts'
import { missing, qemuCheck, qemuImg, qemuIo, scratchFolder } from '../helpers/qemu.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const skip = missing('qemu-img', 'qemu-io')
const MiB = 1 << 20

/** A daemon's graph over a folder, which `crash` leaves as a kill would. */
async function world(stack: AsyncDisposableStack, { logged = true, size = '64M', options = '' } = {}) {
  const folder = await scratchFolder(stack)
  const image = `${folder}/image.qcow2`
  await qemuImg('create', '-q', '-f', 'qcow2', ...(options ? ['-o', options] : []), image, size)
  return new World(folder, image, logged)
}

class World {
  #crashes = 0

  constructor(
    readonly folder: string,
    public image: string,
    private readonly logged: boolean,
  ) {}

  get logs() {
    return `${this.folder}/activity`
  }

  async open(more: object = {}) {
    const graph = new Graph(drivers, { logs: this.logged ? new ActivityFolder(this.logs) : undefined })
    const events: string[] = []
    graph.watch((_name, event) => void events.push(event.error.message))
    const node = await graph.add({
      driver: 'qcow2',
      'node-name': 'disk',
      discard: 'unmap',
      ...more,
      file: { driver: 'file', filename: this.image, discard: 'unmap', ...more },
    })
    const edge = node.readOnly
      ? undefined
      : graph.attach(node, { description: 'a guest', perm: Permission.write | Permission.resize, shared: ALL })
    const bitmaps = () => node.bitmaps
    return {
      graph,
      node,
      events,
      write: (offset: number, length: number, seed = 1) => edge!.write(offset, randomBytes(length, seed)),
      do: (...actions: Action[]) => transact(actions, commits => graph.drained([node], commits)),
      add: (name: string, granularity = 65536, disabled = false) =>
        bitmapAdd(bitmaps, { name, granularity, persistent: true, disabled }),
      clear: (name: string) => bitmapClear(bitmaps, name),
      enable: (name: string) => bitmapEnable(bitmaps, name),
      disable: (name: string) => bitmapDisable(bitmaps, name),
      remove: (name: string) => bitmapRemove(bitmaps, name),
      merge: (target: string, ...sources: string[]) =>
        bitmapMerge(
          bitmaps,
          target,
          sources.map(name => ({ name })),
        ),
      close: () => graph[Symbol.asyncDispose](),
    }
  }

  /** What is in the files now is what the next daemon finds. The old one goes on with files that nobody sees. */
  async crash() {
    const folder = `${this.folder}/${++this.#crashes}`
    await mkdir(folder)
    await copyFile(this.image, `${folder}/image.qcow2`)
    return new World(folder, `${folder}/image.qcow2`, this.logged).#withLogs(this.logs)
  }

  async #withLogs(from: string) {
    if (!existsSync(from)) return this
    await mkdir(this.logs)
    for (const name of readdirSync(from)) await copyFile(`${from}/${name}`, `${this.logs}/${name}`)
    return this
  }
}

type Opened = Awaited<ReturnType<World['open']>>

const stateOf = ({ node }: Opened) =>
  Object.fromEntries(
    Array.from(node.bitmaps, bitmap => [
      bitmap.name,
      bitmap.inconsistent ? 'inconsistent' : `${bitmap.recording ? 'on' : 'off'} ${bitmap.count / bitmap.granularity}`,
    ]),
  )

t.test('an orderly end keeps them all, and leaves nothing in use and no log', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const disk = await world(stack)
  {
    const opened = await disk.open()
    await opened.do(opened.add('a'), opened.add('b', 4096), opened.add('off', 512, true))
    await opened.write(MiB, 100)
    await opened.write(3 * MiB, MiB)
    await opened.close()
    t.same(opened.events, [])
  }
  t.equal(await qemuCheck(disk.image), '')
  t.same(readdirSync(disk.logs), [])
  const info = JSON.parse(await qemuImg('info', '--output=json', disk.image))['format-specific'].data.bitmaps
  t.same(info.map((one: Record<string, unknown>) => [one['name'], one['granularity'], one['flags']]).toSorted(), [
    ['a', 65536, ['auto']],
    ['b', 4096, ['auto']],
    ['off', 512, []],
  ])
  await qemuIo(disk.image, 'write 8M 64k')
  const opened = await disk.open()
  t.same(stateOf(opened), { a: 'on 18', b: 'on 273', off: 'off 0' })
  await opened.do(opened.disable('a'), opened.merge('off', 'a'), opened.remove('b'))
  await opened.close()
  t.equal(await qemuCheck(disk.image), '')
  const again = await disk.open({ 'read-only': true })
  t.same(stateOf(again), { a: 'off 18', off: `off ${18 * 128}` })
  await again.close()
})

t.test(
  'after a crash they have what was written, with a log; without one they are inconsistent, as in QEMU',
  { skip },
  async t => {
    for (const logged of [true, false]) {
      await using stack = new AsyncDisposableStack()
      const disk = await world(stack, { logged })
      const opened = await disk.open()
      await opened.do(opened.add('a'), opened.add('off', 65536, true))
      t.same(stateOf(await (await disk.crash()).open()), { a: 'on 0', off: 'off 0' }, 'before the first write')
      await opened.write(10 * MiB, 100)
      await opened.do(opened.merge('off', 'a'))
      await opened.write(20 * MiB, 100)
      const crashed = await disk.crash()
      t.equal(await qemuCheck(crashed.image).then(text => /ERROR/.test(text)), false)
      const found = await crashed.open()
      t.same(stateOf(found), logged ? { a: 'on 17', off: 'off 1' } : { a: 'inconsistent', off: 'off 1' })
      await found.close()
      t.same(stateOf(await crashed.open()), logged ? { a: 'on 17', off: 'off 1' } : { a: 'inconsistent', off: 'off 1' })
      await opened.close()
    }
  },
)
