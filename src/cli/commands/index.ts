// The commands, in the order of the help.

import type { Noun, Verb } from '../define.ts'
import { backup } from './backup.ts'
import { checkpoint } from './checkpoint.ts'
import { daemon, type RunDaemon } from './daemon.ts'
import { disk } from './disk.ts'
import { qmp } from './qmp.ts'
import { status } from './status.ts'

export const commands = (runDaemon: RunDaemon): readonly (Noun | Verb)[] => [
  daemon(runDaemon),
  status,
  disk,
  checkpoint,
  backup,
  qmp,
]
