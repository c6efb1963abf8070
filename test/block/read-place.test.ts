// Where bytes stand, for threads that read them by themselves: they stay there until nobody reads them any more.

import fs from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { native } from '../../src/base/native.ts'
import { OutOfRange } from '../../src/base/errors.ts'
import type { ReadPlace } from '../../src/block/driver.ts'
import { ALL, Permission } from '../../src/block/permissions.ts'
import { createImage } from '../../src/drivers/qcow2/create.ts'
import { scratchFile } from '../helpers/open-context.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { testGraph } from '../helpers/test-graph.ts'

const skip = !native && 'needs koffi'
const CLUSTER = 65536
const user = { description: 'a test', perm: Permission.consistentRead | Permission.write, shared: ALL }

function read({ fd, at }: ReadPlace, length: number) {
  const bytes = Buffer.alloc(length)
  fs.readSync(fd, bytes, 0, length, at)
  return bytes
}

t.test('a file stays open until what stands in it is read, also below a window of it', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const content = randomBytes(300_000, 1)
  const filename = await scratchFile(content, stack)
  const { graph } = testGraph()
  stack.use(graph)
  const disk = await graph.add({
    driver: 'raw',
    'node-name': 'disk',
    offset: 512,
    size: 200_000,
    file: { driver: 'file', filename },
  })
  const edge = graph.attach(disk, user)
  const place = edge.readPlace({ offset: 1000, length: 5000 })!
  t.throws(() => edge.readPlace({ offset: 199_000, length: 1001 }), OutOfRange)
  t.equal(edge.readPlace({ offset: 1000, length: 0 }), undefined)
  await graph.detach(edge)
  let deleted = false
  const deleting = graph.delete('disk').then(() => (deleted = true))
  await sleep(10)
  t.notOk(deleted)
  t.ok(read(place, 5000).equals(content.subarray(1512, 6512)) && place.isGood())
  place[Symbol.dispose]()
  await deleting
})

t.test('around the page cache nobody reads by himself', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const filename = await scratchFile(randomBytes(300_000, 1), stack)
  const { graph } = testGraph()
  stack.use(graph)
  const disk = await graph.add({ driver: 'file', 'node-name': 'disk', filename, cache: { direct: true } })
  t.equal(graph.attach(disk, user).readPlace({ offset: 0, length: 4096 }), undefined)
})

t.test('a cluster of a qcow2 image that is given back meanwhile is given to nobody before it is read', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const filename = await scratchFile(Buffer.alloc(0), stack)
  const { graph } = testGraph()
  stack.use(graph)
  const file = await graph.add({ driver: 'file', 'node-name': 'file', filename, discard: 'unmap' })
  {
    const creating = graph.attach(file, { ...user, perm: user.perm | Permission.resize })
    await createImage(creating, { size: 64 * CLUSTER })
    await graph.detach(creating)
  }
  const disk = graph.attach(await graph.add({ driver: 'qcow2', 'node-name': 'disk', discard: 'unmap', file: 'file' }), user)
  const content = randomBytes(4 * CLUSTER, 2)
  await disk.write(0, content)
  const all = { offset: 0, length: 4 * CLUSTER }
  t.equal(disk.readPlace({ offset: 0, length: 5 * CLUSTER }), undefined, 'a part of it stands nowhere')
  const place = disk.readPlace(all)!
  const discarding = disk.discard(all)
  await disk.write(8 * CLUSTER, randomBytes(4 * CLUSTER, 3))
  await sleep(10)
  t.ok(read(place, all.length).equals(content))
  place[Symbol.dispose]()
  await discarding
  t.equal(disk.readPlace(all), undefined)
})
