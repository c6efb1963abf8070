// What the daemon runs with: the configuration after it has been read and checked, with every default filled in.
//
// Sizes are bytes, times are milliseconds, paths are absolute.

export interface Settings {
  /** The file it came from; undefined where there is none. */
  readonly file?: string | undefined
  /** The folder of what must survive a restart; undefined where nothing does, beside the images. */
  readonly state?: string | undefined
  readonly control: { readonly socket?: string | undefined }
  /** Where NBD clients connect; may be none. */
  readonly nbd: readonly Listener[]
  readonly machines: Readonly<Record<string, MachineSettings>>
  readonly repositories: Readonly<Record<string, RepositorySettings>>
  readonly scratch: {
    /** The folder for what frozen views keep. */
    readonly path: string
    /** Bytes for all of them together. */
    readonly limit: number
    /** How long a guest's write may wait for scratch space; whole seconds. */
    readonly timeoutMs: number
  }
  readonly sessions: {
    /** How long a pull session stays open when nobody ends it. */
    readonly expireMs: number
  }
  readonly schedules: Readonly<Record<string, ScheduleSettings>>
  /** Where metrics are served; undefined: nowhere. */
  readonly metrics?: HttpPlace | undefined
  /** Where the status page is served; undefined: nowhere. */
  readonly web?: { readonly place: HttpPlace; readonly hosts: readonly string[] } | undefined
  readonly notify: readonly NotifySettings[]
  readonly limits: {
    /** How many machines schedules back up at once. */
    readonly backups: number
  }
}

export type HttpPlace = { readonly unix: string } | { readonly host: string; readonly port: number }

export type NoticeKind = 'failed' | 'warning' | 'stale' | 'recovered'

/** Who is told of what. */
export interface NotifySettings {
  readonly when: readonly NoticeKind[]
  /** Undefined: all of them. */
  readonly schedules?: readonly string[] | undefined
  readonly exec?: CommandLine | undefined
  /** An address, or where one stands (base/secret-reference.ts). */
  readonly webhook?: string | undefined
  readonly timeoutMs: number
}

export interface ScheduleSettings {
  readonly name: string
  readonly machines: readonly string[]
  readonly mode: 'push' | 'pull'
  /** Of a push. */
  readonly repository?: string | undefined
  /** Expressions of systemd or cron, all good; none: it runs only when it is asked for. */
  readonly at: readonly string[]
  /** Default: this machine's. */
  readonly timeZone?: string | undefined
  readonly jitterMs: number
  readonly catchUp: boolean
  /** From when it is due on: nothing is begun later. A pull session ends then. */
  readonly windowMs?: number | undefined
  readonly retries: number
  readonly retryAfterMs: number
  readonly keep?: KeepSettings | undefined
  /** How old the newest good backup may become. */
  readonly staleAfterMs?: number | undefined
}

/** As the repository's RetentionPolicy. */
export interface KeepSettings {
  readonly last?: number
  readonly hourly?: number
  readonly daily?: number
  readonly weekly?: number
  readonly monthly?: number
  readonly yearly?: number
  readonly withinMs?: number
}

export interface RepositorySettings {
  /** The plugin, and its own options: what openTarget takes. */
  readonly target: { readonly plugin: string; readonly [option: string]: unknown }
  /** Where its key is (base/secret-reference.ts); undefined: it is not encrypted. */
  readonly key?: string | undefined
}

export type Listener = ListenerAddress & {
  /** Clients must use it. */
  readonly tls?: ListenerTls | undefined
  /** But for exports of these names, in which * and ? are wild. */
  readonly inTheClear?: readonly string[] | undefined
  /** Who may use which exports (nbd-server/access.ts); undefined: all who can connect, all. */
  readonly allow?: readonly AllowRule[] | undefined
  /** After how long a silence the system asks whether a client is still there; 0: never; undefined: as the server does. */
  readonly keepAliveMs?: number | undefined
  /** A client that asks for nothing for this long is closed; undefined: none is. */
  readonly idleMs?: number | undefined
  /** Bytes a second that a client may read and write; undefined: as many as go. */
  readonly speed?: number | undefined
}

/** The path of a unix socket with its permissions; with a NUL in front an abstract name. */
type ListenerAddress = { readonly unix: string; readonly mode: number } | { readonly host: string; readonly port: number }

export type ListenerTls = { readonly certificates: string; readonly verifyPeer: boolean } | { readonly psk: string }

export interface AllowRule {
  readonly address?: string | undefined
  readonly certificate?: string | undefined
  readonly user?: string | undefined
  readonly exports: readonly string[]
  readonly readOnly?: boolean | undefined
}

export interface MachineSettings {
  readonly disks: Readonly<Record<string, DiskSettings>>
  readonly quiesce?: QuiesceSettings | undefined
  readonly hooks?: HookSettings | undefined
}

/** A program and its arguments. */
export type CommandLine = readonly [program: string, ...args: string[]]

/** How the guest is frozen for an instant. */
export type QuiesceSettings = {
  /** For each step. */
  readonly timeoutMs: number
  /** What becomes of an instant for which the guest cannot be frozen, where nobody has said --quiesce. */
  readonly onFailure: 'fail' | 'continue'
} & ({ readonly agent: string } | { readonly freeze: CommandLine; readonly thaw: CommandLine })

/** What is run around whatever is done with the disks. */
export interface HookSettings {
  readonly before?: CommandLine | undefined
  readonly after?: CommandLine | undefined
  readonly timeoutMs: number
}

export interface DiskSettings {
  readonly image: string
  /** QEMU's name of the image's format; undefined: raw, unless the image looks like something else. */
  readonly format?: 'raw' | 'qcow2' | undefined
  /** Where the bitmaps of a raw image are kept. */
  readonly bitmaps: string
  readonly readOnly: boolean
  /** How many clients it may have at once; undefined: as many as come. */
  readonly maxClients?: number | undefined
  /** One client at a time may write. */
  readonly singleWriter?: boolean | undefined
}
