// What threads may read and write by themselves of a qcow2 image: plain clusters, where QEMU finds them too, and only until anybody takes one away.

import t from 'tap'
import { SharedClusterMap } from '../../../src/block/shared-cluster-map.ts'
import type { LentFile } from '../../../src/block/driver.ts'
import { ALL, Permission } from '../../../src/block/permissions.ts'
import type { Edge } from '../../../src/block/edge.ts'
import { missing, qemuImg, qemuIo, scratchFolder } from '../../helpers/qemu.ts'
import { testGraph } from '../../helpers/test-graph.ts'

const skip = missing('qemu-img', 'qemu-io')
const CLUSTER = 65536
const CLUSTERS = 12
const SIZE = CLUSTERS * CLUSTER

interface Mapped {
  readonly start: number
  readonly length: number
  readonly data: boolean
  readonly zero: boolean
  readonly compressed?: boolean
  readonly offset?: number
}

/** Where QEMU finds each cluster that is there as it is. */
async function asQemuHasIt(image: string) {
  const found: (number | undefined)[] = Array.from({ length: CLUSTERS })
  const extents = JSON.parse(await qemuImg('map', '--output=json', '-f', 'qcow2', image)) as Mapped[]
  for (const { start, length, data, zero, compressed, offset } of extents)
    for (let at = start; at < start + length; at += CLUSTER)
      if (data && !zero && !compressed && offset !== undefined) found[at / CLUSTER] = offset + at - start
  return found
}

const noted = ({ through }: LentFile) =>
  Array.from({ length: CLUSTERS }, (_, cluster) => new SharedClusterMap(through!.map).find(cluster * CLUSTER, CLUSTER))

async function world(stack: AsyncDisposableStack, ...options: string[]) {
  const folder = await scratchFolder(stack)
  const image = `${folder}/disk.qcow2`
  await qemuImg('create', '-q', '-f', 'qcow2', ...options.flatMap(option => ['-o', option]), image, String(SIZE))
  await qemuIo(image, 'write 0 128k', 'write -c 128k 64k', 'write -z 192k 64k', 'write 320k 192k', 'write 640k 4k')
  const open = async () => {
    const { graph } = testGraph()
    const file = { driver: 'file', filename: image, discard: 'unmap' }
    const disk = await graph.add({ driver: 'qcow2', 'node-name': 'disk', discard: 'unmap', file })
    const perm = Permission.consistentRead | Permission.write
    const [guest, other] = ['a guest', 'another one'].map(description => graph.attach(disk, { description, perm, shared: ALL }))
    return { graph, disk, guest: guest!, other: other! }
  }
  return { image, open }
}

const turns = async (count: number) => {
  for (let turn = 0; turn < count; turn++) await new Promise(resolve => setImmediate(resolve))
}

const borrower = { revoke() {}, highestWrite: () => 0 }

/** A write of what is there already. */
async function begin(edge: Edge) {
  const bytes = Buffer.alloc(512)
  await edge.read(0, bytes)
  await edge.write(0, bytes)
}

for (const options of [[], ['extended_l2=on'], ['compat=0.10']])
  t.test(`what a thread finds is where QEMU finds it, and plain (${options.join() || 'by default'})`, { skip }, async t => {
    await using stack = new AsyncDisposableStack()
    const { image, open } = await world(stack, ...options)
    const expected = await asQemuHasIt(image)
    if (options[0] === 'extended_l2=on') expected[10] = undefined // one subcluster of 32
    const { graph, guest } = await open()
    stack.use(graph)
    await begin(guest)
    const lent = guest.lend(borrower)!
    t.strictSame(noted(lent), expected)
    t.ok(expected.filter(host => host !== undefined).length >= 5)
    await guest.write(8 * CLUSTER, Buffer.alloc(2 * CLUSTER, 1))
    await guest.read(8 * CLUSTER, Buffer.alloc(512))
    const gained = noted(lent)
    t.strictSame(gained.toSpliced(8, 2), expected.toSpliced(8, 2), 'what is allocated meanwhile comes to it')
    t.ok(gained[8] !== undefined && gained[9] === gained[8] + CLUSTER)
    t.equal(new SharedClusterMap(lent.through!.map).find(CLUSTER - 512, 1024), expected[0]! + CLUSTER - 512)
    t.equal(new SharedClusterMap(lent.through!.map).find(2 * CLUSTER - 512, 1024), undefined)
    lent.end()
  })

const data = Buffer.alloc(CLUSTER, 7)

/** What takes cluster 5 away, or makes it mean something else, and where the map has it then. */
const TAKERS: Record<
  string,
  (other: Edge, disk: Awaited<ReturnType<Awaited<ReturnType<typeof world>>['open']>>['disk']) => Promise<unknown>
> = {
  'zeroing it': other => other.zero({ offset: 5 * CLUSTER, length: CLUSTER }),
  'zeroing it so that it becomes a hole': other => other.zero({ offset: 5 * CLUSTER, length: CLUSTER }, { unmap: true }),
  'discarding it': other => other.discard({ offset: 5 * CLUSTER, length: CLUSTER }),
  'writing it compressed': other => other.write(5 * CLUSTER, data, { compressed: true }),
  'an internal snapshot': (_other, disk) => disk.snapshots!.create('now', new Date(0)),
}

for (const [what, take] of Object.entries(TAKERS))
  t.test(`${what} waits for what is lent, and nothing is lent meanwhile`, { skip }, async t => {
    await using stack = new AsyncDisposableStack()
    const { image, open } = await world(stack)
    const { graph, disk, guest, other } = await open()
    stack.use(graph)
    await begin(guest)
    let revoked = 0
    const lent = guest.lend({ ...borrower, revoke: () => revoked++ })!
    const before = noted(lent)
    t.ok(before[5] !== undefined)
    const file = disk.children.get('file')!
    const bytes = () => {
      const all = Buffer.alloc(SIZE)
      return other.read(0, all).then(() => all)
    }
    const content = await bytes()
    let taken = false
    const taking = take(other, disk).then(() => (taken = true))
    await turns(50)
    t.strictSame([revoked, taken], [1, false])
    t.equal(guest.lend(borrower), undefined)
    t.strictSame(noted(lent), before, 'it may go on until it gives back')
    t.ok(content.equals(await bytes()), 'and finds what was there')
    lent.end()
    await taking
    const again = guest.lend(borrower)!
    t.equal(noted(again)[5], undefined)
    if (what !== 'an internal snapshot')
      t.strictSame(noted(again).toSpliced(5, 1), before.toSpliced(5, 1), 'and no other is gone')
    await other.write(5 * CLUSTER, data)
    await other.read(5 * CLUSTER, Buffer.alloc(512))
    const host = noted(again)[5]
    t.ok(host !== undefined, 'written anew it is there again')
    again.end()
    t.ok(file.node.highestWrite > 0)
    await graph[Symbol.asyncDispose]()
    if (what !== 'an internal snapshot') t.equal((await asQemuHasIt(image))[5], host)
    await qemuImg('check', '-q', '-f', 'qcow2', image)
  })
