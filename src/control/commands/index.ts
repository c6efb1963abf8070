// All commands of the control socket. A file for each, named as on the wire.

import type { AnyCommand } from '../command.ts'
import { backupAbort } from './backup-abort.ts'
import { backupBegin } from './backup-begin.ts'
import { backupFinish } from './backup-finish.ts'
import { checkpointCreate } from './checkpoint-create.ts'
import { checkpointDelete } from './checkpoint-delete.ts'
import { qmpCapabilities } from './qmp_capabilities.ts'
import { queryBackups } from './query-backups.ts'
import { queryCheckpoints } from './query-checkpoints.ts'
import { queryCommands } from './query-commands.ts'
import { queryDaemon } from './query-daemon.ts'
import { queryMachines } from './query-machines.ts'
import { queryQmpSchema } from './query-qmp-schema.ts'
import { queryVersion } from './query-version.ts'
import { quit } from './quit.ts'

export const commands: readonly AnyCommand[] = [
  backupAbort,
  backupBegin,
  backupFinish,
  checkpointCreate,
  checkpointDelete,
  qmpCapabilities,
  queryBackups,
  queryCheckpoints,
  queryCommands,
  queryDaemon,
  queryMachines,
  queryQmpSchema,
  queryVersion,
  quit,
]
