// The commands, in the order of the help.

import type { Noun, Verb } from '../define.ts'
import { backup } from './backup.ts'
import { checkpoint } from './checkpoint.ts'
import { completion } from './completion.ts'
import { config } from './config.ts'
import { daemon, type RunDaemon } from './daemon.ts'
import { disk } from './disk/index.ts'
import { doctor } from './doctor.ts'
import { image } from './image/index.ts'
import { monitor } from './monitor.ts'
import { nbd } from './nbd.ts'
import { point } from './point.ts'
import { qmp } from './qmp.ts'
import { repo } from './repo.ts'
import { restore } from './restore.ts'
import { schedule } from './schedule.ts'
import { serve } from './serve.ts'
import { status } from './status.ts'

export function commands(runDaemon: RunDaemon): readonly (Noun | Verb)[] {
  const all: (Noun | Verb)[] = [
    daemon(runDaemon),
    status,
    config,
    disk,
    checkpoint,
    backup,
    schedule,
    restore,
    serve,
    nbd,
    point,
    repo,
    image,
    qmp,
    monitor,
    doctor,
  ]
  all.push(completion(all))
  return all
}
