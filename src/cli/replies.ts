// What the daemon replies to the commands that the command line asks of it. Optional members are absent where there is nothing to say.

export interface DaemonInfo {
  readonly version: string
  readonly pid: number
  readonly started: string
  readonly config?: string
  readonly state: string
  readonly control: readonly string[]
  readonly nbd: readonly Listener[]
  readonly scratch: { readonly path: string; readonly used: number; readonly limit: number }
}

export type Listener =
  { readonly type: 'unix'; readonly path: string } | { readonly type: 'inet'; readonly host: string; readonly port: number }

export interface MachineInfo {
  readonly name: string
  readonly disks: readonly DiskInfo[]
  /** How many. */
  readonly checkpoints: number
  readonly current?: string
  readonly sessions: readonly string[]
}

export interface DiskInfo {
  readonly name: string
  readonly node: string
  readonly image?: string
  readonly size: number
  readonly 'read-only': boolean
  readonly export: string
  readonly clients: number
}

export interface CheckpointInfo {
  readonly machine: string
  readonly name: string
  readonly parent?: string
  readonly time: string
  readonly description?: string
  readonly consistency: 'crash' | 'quiesced'
  readonly disks: readonly string[]
  readonly current: boolean
  readonly usable: boolean
  readonly problem?: string
  readonly changed?: number
}

export interface SessionInfo {
  readonly name: string
  readonly machine: string
  readonly mode: 'pull'
  readonly status: 'open' | 'broken'
  readonly reason?: string
  readonly since?: string
  readonly checkpoint?: string
  readonly time: string
  readonly expires: string
  readonly socket?: string
  readonly disks: readonly SessionDisk[]
}

export interface SessionDisk {
  readonly disk: string
  readonly export: string
  readonly size: number
  readonly bitmap?: string
  readonly dirty?: number
}

export interface JobInfo {
  readonly id: string
  readonly type: string
  readonly status: string
  readonly 'current-progress': number
  readonly 'total-progress': number
  readonly error?: string
}

/** By command. */
export interface Replies {
  'query-daemon': DaemonInfo
  'query-machines': readonly MachineInfo[]
  'query-checkpoints': readonly CheckpointInfo[]
  'query-backups': readonly SessionInfo[]
  'query-jobs': readonly JobInfo[]
  'query-commands': readonly { readonly name: string }[]
  'checkpoint-create': CheckpointInfo
  'checkpoint-delete': { readonly deleted: readonly string[] }
  'backup-begin': SessionInfo
  'backup-finish': unknown
  'backup-abort': unknown
}
