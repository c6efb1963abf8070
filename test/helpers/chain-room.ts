// A chain of images in a graph with jobs, for tests of what takes images out of it.

import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Turns } from '../../src/base/turns.ts'
import type { NodeOptions } from '../../src/block/driver.ts'
import { Graph } from '../../src/block/graph.ts'
import type { GraphNode } from '../../src/block/graph-node.ts'
import { ALL, Permission } from '../../src/block/permissions.ts'
import { chainContext } from '../../src/control/chain-arguments.ts'
import { drivers } from '../../src/drivers/index.ts'
import { filters } from '../../src/filters/index.ts'
import { startActiveCommit, startCommit } from '../../src/jobs/commit.ts'
import { Jobs } from '../../src/jobs/jobs.ts'
import { startStream, type ChainJobOptions } from '../../src/jobs/stream.ts'
import { qemuCheck, qemuImg, scratchFolder } from './qemu.ts'

export const GRANULE = 65536
export const SIZE = 8 * GRANULE

interface ImageSpec {
  readonly size?: number
  readonly clusterSize?: number
}
interface RoomOptions {
  /** From the base up; each is behind the next. */
  readonly images: readonly ImageSpec[]
  /** Over the file of the base, or of another image. */
  readonly faults?: readonly object[]
  readonly faulty?: number
  /** The images behind may be written, too. */
  readonly writable?: boolean
}

export const name = (index: number) => `c${index}`

export const open = (stack: AsyncDisposableStack) => stack.use(new Graph([...drivers, ...filters]))

export async function room(stack: AsyncDisposableStack, { images, faults, faulty = 0, writable = false }: RoomOptions) {
  const folder = await scratchFolder(stack)
  const path = (index: number) => join(folder, `${name(index)}.qcow2`)
  for (const [index, { size = SIZE, clusterSize = GRANULE }] of images.entries()) {
    const behind = index > 0 ? ['-b', `${name(index - 1)}.qcow2`, '-F', 'qcow2'] : []
    await qemuImg('create', '-q', '-f', 'qcow2', '-o', `cluster_size=${clusterSize}`, ...behind, path(index), String(size))
  }
  const file = (index: number): NodeOptions => {
    return { driver: 'file', filename: path(index) }
  }
  const chain = (index: number): NodeOptions => ({
    driver: 'qcow2',
    'node-name': name(index),
    discard: 'unmap',
    ...(writable && { 'read-only': false }),
    // A filter that fails is not opened in another way, so it is open for writing from the start.
    file: index === faulty && faults ? 'faulty' : file(index),
    ...(index > 0 && { backing: chain(index - 1) }),
  })
  const last = images.length - 1
  const graphStack = stack.use(new AsyncDisposableStack())
  const graph = open(graphStack)
  const events: { event: string; data: Record<string, unknown> }[] = []
  const emit = (event: string, data: object = {}) => void events.push({ event, data: data as Record<string, unknown> })
  const turns = new Turns()
  const jobs = new Jobs(emit, turns)
  const context = chainContext({ graph, jobs, emit })
  /** Writes to one image alone, with all behind it, as guests did when it was on top. */
  const fill = async (index: number, write: (at: Guest) => Promise<void>) => {
    await using own = new AsyncDisposableStack()
    const before = open(own)
    const node = await before.add({ driver: 'qcow2', 'node-name': 'filled', discard: 'unmap', file: file(index) })
    await write(guestOf(before, node))
  }
  return {
    graph,
    jobs,
    events,
    context,
    turns,
    fill,
    path,
    async openTop() {
      if (faults) await graph.add({ driver: 'inject-error', 'node-name': 'faulty', file: file(faulty), rules: faults })
      return graph.add(chain(last))
    },
    close: () => graphStack.disposeAsync(),
    /** What a new process would see. */
    async reopened(index: number): Promise<Buffer> {
      await using own = new AsyncDisposableStack()
      const after = open(own)
      const node = await after.add({
        driver: 'qcow2',
        'node-name': 'again',
        'read-only': true,
        file: { driver: 'file', filename: path(index) },
      })
      const content = Buffer.alloc(node.size)
      await node.io.read(0, content)
      return content
    },
    async check() {
      const wrong = await Promise.all(images.map((_, index) => qemuCheck(path(index))))
      return wrong.filter(Boolean)
    },
  }
}

export const guestOf = (graph: Graph, node: GraphNode) =>
  graph.attach(node, { description: 'a guest', perm: Permission.consistentRead | Permission.write, shared: ALL })
export type Guest = ReturnType<typeof guestOf>
export type Room = Awaited<ReturnType<typeof room>>

const options: ChainJobOptions & { jobId: string } = { jobId: 'j', autoDismiss: false }

export const until = async (condition: () => boolean) => {
  for (let count = 0; !condition(); count++) {
    if (count > 2000) throw new Error('it did not come to that')
    await sleep(5)
  }
}

export const start = async (
  { graph, context, jobs, turns }: Room,
  kind: 'stream' | 'stream-base' | 'commit' | 'active',
  more: Partial<ChainJobOptions> = {},
  last = 3,
) => {
  const at = (index: number) => graph.get(name(index))
  const all = { ...options, ...more }
  await turns.take(async () => {
    if (kind === 'stream') await startStream(context, { ...all, node: at(last), bottom: undefined })
    if (kind === 'stream-base') await startStream(context, { ...all, node: at(last), bottom: at(1) })
    if (kind === 'commit') await startCommit(context, { ...all, device: at(last), top: at(last - 1), base: at(0) })
    if (kind === 'active') await startActiveCommit(context, { ...all, device: at(last), top: at(last), base: at(0) })
  })
  return jobs.get('j')
}
