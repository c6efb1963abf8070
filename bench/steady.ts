// Load that costs the client next to nothing, so that the server is what is measured.
//
// libnbd's clients (fio, nbdcopy) take longer over a small request, and over the memory for a large one, than a good server takes to answer it: by
// them one sees the client. Here each connection has a thread that keeps so many requests in flight, made beforehand, and looks of the answers only
// at their headers (steady-client.ts). It speaks to all servers alike.

import { Worker } from 'node:worker_threads'
import type { Result, Task } from './steady-client.ts'
import type { Load } from './fio.ts'

/** A load of fio's that ends with its time. */
export interface SteadyLoad extends Required<Pick<Load, 'rw' | 'block' | 'depth' | 'size' | 'seconds'>> {
  readonly connections?: number
  /** In no order, another one asks for other places. */
  readonly round: number
}

/**
 * Requests in a second, all connections together, and how many there were. In order, each connection has its own part of the disk.
 * @param uri `nbd+unix:///EXPORT?socket=PATH`
 */
export async function steady(uri: string, { connections = 1, ...load }: SteadyLoad): Promise<{ iops: number; count: number }> {
  const { pathname, searchParams } = new URL(uri)
  const [socket, name, size] = [searchParams.get('socket')!, pathname.slice(1), load.size / connections]
  const tasks = Array.from({ length: connections }, (_, at): Task => ({ ...load, socket, name, start: at * size, size }))
  const results = await Promise.all(tasks.map(task => inThread(task)))
  return {
    iops: results.reduce((sum, { count, seconds }) => sum + count / seconds, 0),
    count: results.reduce((sum, { count }) => sum + count, 0),
  }
}

const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js'

const inThread = (workerData: Task) =>
  new Promise<Result>((resolve, reject) => {
    const worker = new Worker(new URL(`./steady-client.${extension}`, import.meta.url), { workerData })
    worker.once('message', resolve)
    worker.once('error', reject)
    worker.once('exit', code => reject(new Error(`a client has ended with ${code}, and no result`)))
  })
