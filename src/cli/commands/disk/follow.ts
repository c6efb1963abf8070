// Waits for what works on a disk, and says how it went. Who stops waiting stops nothing: the daemon does the work.

import { setTimeout as sleep } from 'node:timers/promises'
import { Fault } from '../../../base/errors.ts'
import { formatSize } from '../../../base/units.ts'
import type { Daemon } from '../../daemon-client.ts'
import { print, printJson } from '../../output.ts'
import { Progress } from '../../progress.ts'
import type { DiskJobInfo } from '../../replies.ts'

const LOOK_AGAIN_MS = 100
/** Of the progress, which is not known in bytes before the daemon has looked. */
const PARTS = 1000

/** It has ended otherwise than well. */
export class DiskJobFailed extends Fault {}

const words = { copy: 'Copying', pull: 'Pulling', commit: 'Committing' } as const

/** Until it is ready to be pivoted, or over. @throws DiskJobFailed */
export async function followJob(daemon: Daemon, begun: DiskJobInfo, { untilOver = false } = {}): Promise<DiskJobInfo> {
  const { machine, disk, type } = begun
  using progress = new Progress(`${words[type]} ${machine}/${disk}`, PARTS)
  for (let job = begun; ;) {
    if (job.over) {
      checkEnd(job)
      return job
    }
    if (job.ready && !untilOver) return job
    progress.at(job.total > 0 ? (job.current / job.total) * PARTS : 0)
    await sleep(LOOK_AGAIN_MS)
    const [now] = await daemon.ask('query-disk-jobs', { machine, disk })
    if (now?.job !== begun.job) throw new DiskJobFailed(`what worked on ${machine}/${disk} is gone: the daemon was started anew`)
    job = now
  }
}

function checkEnd({ machine, disk, type, cancelled, error }: DiskJobInfo) {
  if (error !== undefined)
    throw new DiskJobFailed(`the ${type} of ${machine}/${disk} has failed: ${error}; the disk is where it was`)
  if (cancelled) throw new DiskJobFailed(`the ${type} of ${machine}/${disk} was aborted; the disk is where it was`)
}

/** For programs the job; for people the sentence. */
export function tellJob(job: DiskJobInfo, json: boolean, sentence: string) {
  if (json) printJson(job)
  else print(`${sentence}\n`)
}

export const amount = ({ total }: DiskJobInfo) => formatSize(total)
