// A disk that a guest writes to, and a target, in memory: for tests of the mirror job.

import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { Turns } from '../../src/base/turns.ts'
import { ALL, Permission } from '../../src/block/permissions.ts'
import type { JobGroup } from '../../src/jobs/job-group.ts'
import type { Job } from '../../src/jobs/job.ts'
import { Jobs } from '../../src/jobs/jobs.ts'
import { MirrorAction } from '../../src/jobs/mirror.ts'
import type { MirrorOptions } from '../../src/jobs/mirror-options.ts'
import { transact } from '../../src/transactions/transact.ts'
import { diskContent, randomBytes } from './random-bytes.ts'
import { testGraph } from './test-graph.ts'

export const GRANULE = 4096
export const SIZE = 40 * GRANULE + 512

export async function room(stack: AsyncDisposableStack) {
  const { graph, memory } = testGraph()
  stack.use(graph)
  const events: { event: string; data: Record<string, unknown> }[] = []
  const emit = (event: string, data: object) => void events.push({ event, data: data as Record<string, unknown> })
  const turns = new Turns()
  const jobs = new Jobs(emit, turns)
  for (const name of ['disk', 'target']) await graph.add({ driver: 'memory', 'node-name': name, size: SIZE })
  const [disk, target] = [graph.get('disk'), graph.get('target')]
  memory('disk').bytes.set(diskContent(SIZE, 7))
  memory('target').bytes.set(randomBytes(SIZE, 8))
  const guest = graph.attach(disk, { description: 'a guest', perm: Permission.consistentRead | Permission.write, shared: ALL })
  const start = async (options: Partial<MirrorOptions> = {}, group?: JobGroup, holdMs = 20_000) => {
    const all = { jobId: 'j', source: disk, target, sync: 'full', granularity: GRANULE, autoDismiss: false, ...options } as const
    await transact([new MirrorAction({ graph, jobs, emit, scratch: { timeoutSeconds: 0 }, holdMs }, all, group)], commits =>
      graph.drained([all.source], commits),
    )
    return jobs.get(all.jobId)
  }
  const names = () => [...graph.nodes].map(({ name }) => name)
  return { graph, memory, jobs, events, disk, target, guest, start, turns, names }
}

export type Room = Awaited<ReturnType<typeof room>>

export const inRoom = (name: string, test: (t: Test, room: Room) => Promise<void>) =>
  void t.test(name, async t => {
    await using stack = new AsyncDisposableStack()
    await test(t, await room(stack))
  })

export const until = async (condition: () => boolean) => {
  for (let count = 0; !condition(); count++) {
    if (count > 2000) throw new Error('it did not come to that')
    await sleep(5)
  }
}
export const ready = (job: Job) => until(() => job.isReady || job.isOver)
