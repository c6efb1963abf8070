// What the daemon replies to the commands that the command line asks of it: the types are those of the commands themselves.

import type { Command } from '../control/command.ts'
import type { backupAbort } from '../control/commands/backup-abort.ts'
import type { backupBegin } from '../control/commands/backup-begin.ts'
import type { backupEstimate } from '../control/commands/backup-estimate.ts'
import type { backupFinish } from '../control/commands/backup-finish.ts'
import type { blockResize } from '../control/commands/block_resize.ts'
import type { checkpointCreate } from '../control/commands/checkpoint-create.ts'
import type { checkpointDelete } from '../control/commands/checkpoint-delete.ts'
import type { checkpointRepair } from '../control/commands/checkpoint-repair.ts'
import type { configReload } from '../control/commands/config-reload.ts'
import type { queryBackups } from '../control/commands/query-backups.ts'
import type { queryCheckpoints } from '../control/commands/query-checkpoints.ts'
import type { queryDaemon } from '../control/commands/query-daemon.ts'
import type { diskAbort } from '../control/commands/disk-abort.ts'
import type { diskCommit } from '../control/commands/disk-commit.ts'
import type { diskCopy } from '../control/commands/disk-copy.ts'
import type { diskPivot } from '../control/commands/disk-pivot.ts'
import type { diskPull } from '../control/commands/disk-pull.ts'
import type { diskSnapshot } from '../control/commands/disk-snapshot.ts'
import type { queryDiskJobs } from '../control/commands/query-disk-jobs.ts'
import type { queryJobs } from '../control/commands/query-jobs.ts'
import type { querySchedules } from '../control/commands/query-schedules.ts'
import type { scheduleRun } from '../control/commands/schedule-run.ts'
import type { queryMachines } from '../control/commands/query-machines.ts'

// oxlint-disable-next-line no-explicit-any -- whatever its arguments are
type ReplyOf<C> = C extends Command<any, infer Reply> ? Reply : never

/** By command. */
export interface Replies {
  'query-daemon': ReplyOf<typeof queryDaemon>
  'query-machines': ReplyOf<typeof queryMachines>
  'query-checkpoints': ReplyOf<typeof queryCheckpoints>
  'query-backups': ReplyOf<typeof queryBackups>
  'query-schedules': ReplyOf<typeof querySchedules>
  'schedule-run': ReplyOf<typeof scheduleRun>
  'config-reload': ReplyOf<typeof configReload>
  block_resize: ReplyOf<typeof blockResize>
  'disk-abort': ReplyOf<typeof diskAbort>
  'disk-commit': ReplyOf<typeof diskCommit>
  'disk-copy': ReplyOf<typeof diskCopy>
  'disk-pivot': ReplyOf<typeof diskPivot>
  'disk-pull': ReplyOf<typeof diskPull>
  'disk-snapshot': ReplyOf<typeof diskSnapshot>
  'query-disk-jobs': ReplyOf<typeof queryDiskJobs>
  'query-jobs': ReplyOf<typeof queryJobs>
  'checkpoint-create': ReplyOf<typeof checkpointCreate>
  'checkpoint-delete': ReplyOf<typeof checkpointDelete>
  'checkpoint-repair': ReplyOf<typeof checkpointRepair>
  'backup-begin': ReplyOf<typeof backupBegin>
  'backup-estimate': ReplyOf<typeof backupEstimate>
  'backup-finish': ReplyOf<typeof backupFinish>
  'backup-abort': ReplyOf<typeof backupAbort>
}

export type DaemonInfo = Replies['query-daemon']
export type JobInfo = Replies['query-jobs'][number]
export type Listener = DaemonInfo['nbd'][number]
export type DiskJobInfo = Replies['disk-copy']
export type MachineInfo = Replies['query-machines'][number]
export type CheckpointInfo = Replies['checkpoint-create']
export type SessionInfo = Replies['backup-begin']
export type ScheduleInfo = Replies['query-schedules'][number]
export type ScheduleRun = Replies['schedule-run']
