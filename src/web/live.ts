// What is under way just now, with its rates: the part of the document that changes by the second.

import { messageOf } from '../base/errors.ts'
import type { CommandContext } from '../control/context.ts'
import { PushSession } from '../machines/push-session.ts'
import type { Rates } from './rates.ts'

/** Of each kind; how many more there are is told. */
const MOST = 100

export interface Task {
  readonly kind: 'push' | 'pull' | 'backup' | 'mirror' | 'stream' | 'commit' | 'create'
  readonly name: string
  /** The machine, or MACHINE/DISK, where it is known. */
  readonly what?: string
  readonly status: string
  readonly since?: string
  /** Where it leads. */
  readonly to?: string
  /** Bytes, of a session or a block job. */
  readonly done?: number
  readonly total?: number
  /** Bytes a second that were dealt with lately. */
  readonly rate?: number
  readonly 'seconds-left'?: number
  /** Until when somebody may read it. */
  readonly expires?: string
  readonly problem?: string
}

export interface Live {
  /** Another number: the document says something else than it did. */
  readonly generation: number
  readonly tasks: readonly Task[]
  /** More that are not told. */
  readonly more: number
  readonly scratch: { readonly used: number; readonly limit: number }
  readonly clients: number
}

/** How much longer at this rate, where that says anything. */
const left = (done: number, total: number, rate: number | undefined) =>
  rate !== undefined && rate > 0 && total > done ? { 'seconds-left': Math.ceil((total - done) / rate) } : {}

function* tasksOf({ backups, jobs, diskJobs }: CommandContext, rates: Rates): Generator<Task> {
  for (const session of backups) {
    if (session instanceof PushSession) {
      if (session.concluded) continue
      const { name, machine, time, repository, progress } = session.info()
      const { done, total } = progress
      const rate = rates.of(session, done)
      yield {
        kind: 'push',
        name,
        what: machine,
        status: 'running',
        since: time,
        to: repository,
        done,
        total,
        ...(rate !== undefined && { rate }),
        ...left(done, total, rate),
      }
    } else {
      const { name, machine, time, status, expires, ...rest } = session.info()
      yield {
        kind: 'pull',
        name,
        what: machine,
        status,
        since: time,
        expires,
        ...('reason' in rest && { problem: String(rest.reason) }),
      }
    }
  }
  const disks = new Map(
    [...diskJobs].map(({ job, machine, disk, target }) => [job, { what: `${machine.name}/${disk.name}`, target }]),
  )
  for (const job of jobs) {
    const { current: done, total } = job.progress
    const rate = job.isOver ? undefined : rates.of(job, done)
    const disk = disks.get(job)
    yield {
      kind: job.type,
      name: job.id,
      status: job.status,
      ...(disk && { what: disk.what }),
      ...(disk?.target !== undefined && { to: disk.target }),
      done,
      total,
      ...(rate !== undefined && { rate }),
      ...left(done, total, rate),
      ...(job.error && !job.cancelled && { problem: messageOf(job.error) }),
    }
  }
}

export function liveOf(context: CommandContext & { readonly clients: () => number }, rates: Rates, generation: number): Live {
  const tasks = [...tasksOf(context, rates)]
  const { scratch } = context
  return {
    generation,
    tasks: tasks.slice(0, MOST),
    more: Math.max(0, tasks.length - MOST),
    scratch: { used: scratch.used, limit: scratch.limit },
    clients: context.clients(),
  }
}
