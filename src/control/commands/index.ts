// All commands of the control socket. A file for each, named as on the wire.

import type { AnyCommand } from '../command.ts'
import { backupAbort } from './backup-abort.ts'
import { backupBegin } from './backup-begin.ts'
import { backupEstimate } from './backup-estimate.ts'
import { backupFinish } from './backup-finish.ts'
import { blockCommit } from './block-commit.ts'
import { blockDirtyBitmapAdd } from './block-dirty-bitmap-add.ts'
import { blockDirtyBitmapClear } from './block-dirty-bitmap-clear.ts'
import { blockDirtyBitmapDisable } from './block-dirty-bitmap-disable.ts'
import { blockDirtyBitmapEnable } from './block-dirty-bitmap-enable.ts'
import { blockDirtyBitmapMerge } from './block-dirty-bitmap-merge.ts'
import { blockDirtyBitmapRemove } from './block-dirty-bitmap-remove.ts'
import { blockExportAdd } from './block-export-add.ts'
import { blockExportDel } from './block-export-del.ts'
import { blockJobCancel } from './block-job-cancel.ts'
import { blockJobChange } from './block-job-change.ts'
import { blockJobComplete } from './block-job-complete.ts'
import { blockJobDismiss } from './block-job-dismiss.ts'
import { blockJobFinalize } from './block-job-finalize.ts'
import { blockJobPause } from './block-job-pause.ts'
import { blockJobResume } from './block-job-resume.ts'
import { blockJobSetSpeed } from './block-job-set-speed.ts'
import { blockSetWriteThreshold } from './block-set-write-threshold.ts'
import { blockStream } from './block-stream.ts'
import { blockResize } from './block_resize.ts'
import { blockdevAdd } from './blockdev-add.ts'
import { blockdevBackup } from './blockdev-backup.ts'
import { blockdevCreate } from './blockdev-create.ts'
import { blockdevDel } from './blockdev-del.ts'
import { blockdevMirror } from './blockdev-mirror.ts'
import { blockdevReopen } from './blockdev-reopen.ts'
import { blockdevSnapshotSync } from './blockdev-snapshot-sync.ts'
import { blockdevSnapshotDeleteInternalSync } from './blockdev-snapshot-delete-internal-sync.ts'
import { blockdevSnapshotInternalSync } from './blockdev-snapshot-internal-sync.ts'
import { blockdevSnapshot } from './blockdev-snapshot.ts'
import { changeBackingFile } from './change-backing-file.ts'
import { checkpointCreate } from './checkpoint-create.ts'
import { checkpointDelete } from './checkpoint-delete.ts'
import { checkpointRepair } from './checkpoint-repair.ts'
import { configReload } from './config-reload.ts'
import { diskAbort } from './disk-abort.ts'
import { diskCommit } from './disk-commit.ts'
import { diskCopy } from './disk-copy.ts'
import { diskPivot } from './disk-pivot.ts'
import { diskPull } from './disk-pull.ts'
import { diskSnapshot } from './disk-snapshot.ts'
import { driveBackup } from './drive-backup.ts'
import { driveMirror } from './drive-mirror.ts'
import { jobCancel } from './job-cancel.ts'
import { jobComplete } from './job-complete.ts'
import { jobDismiss } from './job-dismiss.ts'
import { jobFinalize } from './job-finalize.ts'
import { jobPause } from './job-pause.ts'
import { jobResume } from './job-resume.ts'
import { machineThaw } from './machine-thaw.ts'
import { nbdServerAdd } from './nbd-server-add.ts'
import { nbdServerRemove } from './nbd-server-remove.ts'
import { nbdServerStart } from './nbd-server-start.ts'
import { nbdServerStop } from './nbd-server-stop.ts'
import { objectAdd } from './object-add.ts'
import { objectDel } from './object-del.ts'
import { qmpCapabilities } from './qmp_capabilities.ts'
import { qomGet } from './qom-get.ts'
import { qomList } from './qom-list.ts'
import { qomListProperties } from './qom-list-properties.ts'
import { qomListTypes } from './qom-list-types.ts'
import { qomSet } from './qom-set.ts'
import { queryBackups } from './query-backups.ts'
import { queryBlock } from './query-block.ts'
import { queryBlockExports } from './query-block-exports.ts'
import { queryBlockJobs } from './query-block-jobs.ts'
import { queryBlockstats } from './query-blockstats.ts'
import { queryCheckpoints } from './query-checkpoints.ts'
import { queryCommands } from './query-commands.ts'
import { queryDaemon } from './query-daemon.ts'
import { queryDiskJobs } from './query-disk-jobs.ts'
import { queryJobs } from './query-jobs.ts'
import { queryMachines } from './query-machines.ts'
import { queryNamedBlockNodes } from './query-named-block-nodes.ts'
import { queryQmpSchema } from './query-qmp-schema.ts'
import { querySchedules } from './query-schedules.ts'
import { queryTransaction } from './query-transaction.ts'
import { queryVersion } from './query-version.ts'
import { quit } from './quit.ts'
import { scheduleRun } from './schedule-run.ts'
import { transactionBegin } from './transaction-begin.ts'
import { transactionCommit } from './transaction-commit.ts'
import { transactionRollback } from './transaction-rollback.ts'
import { transaction } from './transaction.ts'
import { xDebugBlockDirtyBitmapSha256 } from './x-debug-block-dirty-bitmap-sha256.ts'

export const commands: readonly AnyCommand[] = [
  backupAbort,
  backupBegin,
  backupEstimate,
  backupFinish,
  blockCommit,
  blockDirtyBitmapAdd,
  blockDirtyBitmapClear,
  blockDirtyBitmapDisable,
  blockDirtyBitmapEnable,
  blockDirtyBitmapMerge,
  blockDirtyBitmapRemove,
  blockExportAdd,
  blockExportDel,
  blockJobCancel,
  blockJobChange,
  blockJobComplete,
  blockJobDismiss,
  blockJobFinalize,
  blockJobPause,
  blockJobResume,
  blockJobSetSpeed,
  blockSetWriteThreshold,
  blockStream,
  blockResize,
  blockdevAdd,
  blockdevBackup,
  blockdevCreate,
  blockdevDel,
  blockdevMirror,
  blockdevReopen,
  blockdevSnapshot,
  blockdevSnapshotDeleteInternalSync,
  blockdevSnapshotInternalSync,
  blockdevSnapshotSync,
  changeBackingFile,
  checkpointCreate,
  checkpointDelete,
  checkpointRepair,
  configReload,
  diskAbort,
  diskCommit,
  diskCopy,
  diskPivot,
  diskPull,
  diskSnapshot,
  driveBackup,
  driveMirror,
  jobCancel,
  jobComplete,
  jobDismiss,
  jobFinalize,
  jobPause,
  jobResume,
  machineThaw,
  nbdServerAdd,
  nbdServerRemove,
  nbdServerStart,
  nbdServerStop,
  objectAdd,
  objectDel,
  qmpCapabilities,
  qomGet,
  qomList,
  qomListProperties,
  qomListTypes,
  qomSet,
  queryBackups,
  queryBlock,
  queryBlockExports,
  queryBlockJobs,
  queryBlockstats,
  queryCheckpoints,
  queryCommands,
  queryDaemon,
  queryDiskJobs,
  queryJobs,
  queryMachines,
  queryNamedBlockNodes,
  queryQmpSchema,
  querySchedules,
  queryTransaction,
  queryVersion,
  quit,
  scheduleRun,
  transaction,
  transactionBegin,
  transactionCommit,
  transactionRollback,
  xDebugBlockDirtyBitmapSha256,
]
