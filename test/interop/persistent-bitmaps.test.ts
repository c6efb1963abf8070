// Persistent bitmaps between QEMU and us: whoever has the image open records what is written, and the other finds exactly that.

import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { DirtyBitmap } from '../../src/bitmaps/dirty-bitmap.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { bitmapWorld, stateOf } from '../helpers/bitmap-world.ts'
import { missing, qemuCheck, qemuImg, qemuIo, run } from '../helpers/qemu.ts'
import { qsdMissing, startQsd } from '../helpers/qemu-storage-daemon.ts'
import { generator } from '../helpers/random-bytes.ts'

const skip = qsdMissing || missing('qemu-img', 'qemu-io')
const KiB = 1024
const MiB = KiB * KiB
const SIZE = 64 * MiB

t.test('bitmaps go both ways through several turns, bit for bit', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const disk = await bitmapWorld(stack, { options: 'cluster_size=4096' })
  const model = new Map<string, DirtyBitmap>()
  const random = generator(20)
  const writes = (count: number) =>
    Array.from({ length: count }, () => {
      const length = 512 * (1 + (random() % 300))
      return { offset: 512 * (random() % ((SIZE - length) / 512)), length }
    })
  const mark = (all: readonly { offset: number; length: number }[]) => {
    for (const bitmap of model.values()) if (bitmap.recording) for (const { offset, length } of all) bitmap.mark(offset, length)
  }
  const socket = await startQsd(stack)
  /** What QEMU says of each: it opens the image for reading only. */
  const compare = async (when: string) => {
    t.equal(await qemuCheck(disk.image), '', when)
    const qmp = await QmpClient.connect(socket)
    await qmp.execute('blockdev-add', {
      driver: 'qcow2',
      'node-name': 'n',
      'read-only': true,
      file: { driver: 'file', filename: disk.image, 'read-only': true },
    })
    for (const [name, bitmap] of model)
      t.same(
        await qmp.execute('x-debug-block-dirty-bitmap-sha256', { node: 'n', name }),
        { sha256: bitmap.sha256() },
        `${name} ${when}`,
      )
    const nodes = (await qmp.execute('query-named-block-nodes', { flat: true })) as QueriedNode[]
    const node = nodes.find(node => node['node-name'] === 'n')
    const bitmaps = node!['dirty-bitmaps'] ?? []
    t.same(
      Object.fromEntries(bitmaps.map(({ name, ...one }) => [name, one])),
      Object.fromEntries(
        Array.from(model, ([name, bitmap]) => [
          name,
          { granularity: bitmap.granularity, recording: bitmap.recording, persistent: true, busy: false, count: bitmap.count },
        ]),
      ),
      when,
    )
    await qmp.execute('blockdev-del', { 'node-name': 'n' })
    await qmp[Symbol.asyncDispose]()
    await sleep(20) // it takes one client at a time
  }
  const added = (name: string, granularity: number, disabled = false) =>
    model.set(name, new DirtyBitmap({ name, size: SIZE, granularity, disabled }))

  const ours = await disk.open()
  await ours.do(ours.add('a'), ours.add('b', 512), ours.add('off', 4096, true))
  added('a', 65536)
  added('b', 512)
  added('off', 4096, true)
  for (let turn = 0; turn < 4; turn++) {
    const opened = turn === 0 ? ours : await disk.open()
    const first = writes(12)
    for (const { offset, length } of first) await opened.write(offset, length)
    mark(first)
    if (turn === 1) {
      await opened.do(opened.merge('off', 'a'), opened.clear('a'), opened.disable('b'))
      model.get('off')!.mergeFrom(model.get('a')!)
      model.get('a')!.clear()
      model.get('b')!.disable()
    }
    if (turn === 2) {
      await opened.do(opened.remove('c'), opened.enable('b'))
      model.delete('c')
      model.get('b')!.enable()
    }
    const second = writes(12)
    for (const { offset, length } of second) await opened.write(offset, length)
    mark(second)
    for (const [name, bitmap] of model)
      t.equal(opened.node.bitmaps.get(name).sha256(), bitmap.sha256(), `${name} here, turn ${turn}`)
    await opened.close()
    t.same(opened.events, [])
    await compare(`after our turn ${turn}`)

    if (turn === 0) {
      await qemuImg('bitmap', '--add', '-g', '8k', disk.image, 'c')
      added('c', 8192)
    }
    if (turn === 1) {
      await qemuImg('bitmap', '--merge', 'b', disk.image, 'c')
      await qemuImg('bitmap', '--clear', disk.image, 'off')
      model.get('c')!.mergeFrom(model.get('b')!)
      model.get('off')!.clear()
    }
    const theirs = writes(12)
    await qemuIo(disk.image, ...theirs.map(({ offset, length }) => `write -P 5 ${offset} ${length}`))
    mark(theirs)
    await compare(`after QEMU's turn ${turn}`)
  }
})

const flags = async (image: string) => {
  const info = JSON.parse(await qemuImg('info', '-U', '--output=json', image))
  const { bitmaps } = info['format-specific'].data as { bitmaps: { name: string; flags: string[] }[] }
  return Object.fromEntries(bitmaps.map(one => [one.name, one.flags]))
}

interface QueriedNode {
  readonly 'node-name': string
  readonly 'dirty-bitmaps'?: readonly { readonly name: string }[]
}

t.test(
  'what we leave when we crash is inconsistent for QEMU, and for us as well once QEMU has written to the image',
  { skip },
  async t => {
    await using stack = new AsyncDisposableStack()
    const disk = await bitmapWorld(stack)
    const opened = await disk.open()
    await opened.do(opened.add('a'), opened.add('off', 65536, true))
    await opened.write(MiB, 100)
    await opened.do(opened.merge('off', 'a'))
    const asLeft = { a: ['in-use', 'auto'], off: [] }

    const looked = await disk.crash()
    t.same(await flags(looked.image), asLeft)
    await run('qemu-io', ['-r', '-f', 'qcow2', looked.image], 'read 0 1M\n')
    const found = await looked.open()
    t.same(stateOf(found), { a: 'on 1', off: 'off 1' }, 'who only reads does no harm')
    await found.close()
    t.equal(await qemuCheck(looked.image).then(said => /ERROR/.test(said)), false)
    t.same(await flags(looked.image), { a: ['auto'], off: [] })

    const written = await disk.crash()
    await qemuIo(written.image, 'write 40M 64k')
    t.same(await flags(written.image), asLeft)
    const refused = await written.open()
    t.same(stateOf(refused), { a: 'inconsistent', off: 'off 1' })
    await refused.do(refused.remove('a'), refused.add('fresh'))
    await refused.write(0, 100)
    await refused.close()
    t.same(await flags(written.image), { fresh: ['auto'], off: [] })

    const without = await disk.crash()
    without.loseLogs()
    const lost = await without.open()
    t.same(stateOf(lost), { a: 'inconsistent', off: 'off 1' }, 'the image without its log')
    t.match(lost.node.bitmaps.get('a').problem, /activity log .* is not in the state folder/)
    await lost.close()
    await opened.close()
  },
)
