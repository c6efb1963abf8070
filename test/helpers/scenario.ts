// Scenarios for a differential test: steps that are done with qemu-storage-daemon and with our daemon, and must come out the same.
//
// `$D` in any text stands for the side's own folder, in which the images are and where each side's sockets go.

/** How an image is made before the daemon starts. */
export interface ImageSpec {
  /** Bytes, or as qemu-img says them: `4M`. An encrypted volume has 1 MiB, and `a password`. */
  readonly size: string
  /** Default: raw. */
  readonly format?: 'raw' | 'qcow2' | 'luks'
  /** Content of the disk from this seed; default: zeroes. */
  readonly seed?: number
  /** Another image of the scenario, behind this one. */
  readonly backing?: string
  /** As `qemu-img create -o`. */
  readonly options?: string
  /** Bytes in hex that are written over the file, to damage it. */
  readonly damage?: { readonly at: number; readonly bytes: string }
  /** Not compared when all is over. */
  readonly scratch?: boolean
}

export interface Difference {
  /** What ours says, or a part of it: members that are left out here are as QEMU's. */
  readonly ours: unknown
  /** Why it is better, or what of QEMU's is a bug or a version's whim. */
  readonly because: string
}

export interface StepOptions {
  /** Members of the answer, at any depth, that differ by nature at this step. */
  readonly ignoring?: readonly string[]
  readonly differs?: Difference
}

export type Step = StepOptions &
  (
    | { readonly kind: 'command'; readonly name: string; readonly args: object }
    /** Waits for an event of which this is a part; all events up to it must be the same. */
    | {
        readonly kind: 'event'
        readonly name: string
        readonly data: Readonly<Record<string, unknown>>
        readonly perJob: boolean
      }
    /** Runs a program and compares what it prints. */
    | { readonly kind: 'tool'; readonly tool: string; readonly args: readonly string[] }
    /** The bytes of a whole export. */
    | { readonly kind: 'content'; readonly uri: string }
  )

export interface Scenario {
  readonly title: string
  readonly images?: Readonly<Record<string, ImageSpec>>
  readonly steps: readonly Step[]
  /** Of the events that no step has waited for. */
  readonly rest?: Difference
}

/** A command of the control socket; its answer must be the same. */
export const qmp = (name: string, args: object = {}, options: StepOptions = {}): Step => ({
  kind: 'command',
  name,
  args,
  ...options,
})

/** Waits for an event. `perJob`: several jobs run, and only the order of each one's events is known. */
export const event = (
  name: string,
  data: Readonly<Record<string, unknown>> = {},
  { perJob = false, ...options }: StepOptions & { perJob?: boolean } = {},
): Step => ({
  kind: 'event',
  name,
  data,
  perJob,
  ...options,
})

/** Waits until a job has this status. */
export const job = (id: string, status: string, options: StepOptions & { perJob?: boolean } = {}) =>
  event('JOB_STATUS_CHANGE', { id, status }, options)

const uriOf = (name: string, socket = 'nbd.sock') => `nbd+unix:///${encodeURIComponent(name)}?socket=$D/${socket}`

/** A guest: commands of qemu-io on an export. */
export const guest = (name: string, ...commands: string[]): Step => ({
  kind: 'tool',
  tool: 'qemu-io',
  args: ['-f', 'raw', ...commands.flatMap(text => ['-c', text]), uriOf(name)],
})

/** The same, of which it is expected that ours differs. */
export const guestDiffers = (name: string, commands: readonly string[], differs: Difference): Step => ({
  ...guest(name, ...commands),
  differs,
})

/** An export's block status in a metadata context. */
export const map = (name: string, context = 'base:allocation', options: StepOptions = {}): Step => ({
  kind: 'tool',
  tool: 'nbdinfo',
  args: ['--json', `--map=${context}`, uriOf(name)],
  ...options,
})

/** What a client learns of an export. */
export const info = (name: string, options: StepOptions = {}): Step => ({
  kind: 'tool',
  tool: 'nbdinfo',
  args: ['--json', '--no-content', uriOf(name)],
  ...options,
})

/** All bytes of an export. */
export const content = (name: string, options: StepOptions = {}): Step => ({ kind: 'content', uri: uriOf(name), ...options })

/** A transaction of actions, each as `[type, data]`. */
export const transaction = (
  actions: readonly (readonly [type: string, data?: object])[],
  { grouped = false, ...options }: StepOptions & { grouped?: boolean } = {},
) =>
  qmp(
    'transaction',
    {
      actions: actions.map(([type, data = {}]) => ({ type, data })),
      ...(grouped && { properties: { 'completion-mode': 'grouped' } }),
    },
    options,
  )

/** What a bitmap holds. */
export const bitmap = (node: string, name: string, options: StepOptions = {}) =>
  qmp('x-debug-block-dirty-bitmap-sha256', { node, name }, options)

// What most scenarios begin with.

/** A node of this name over an image of the scenario. */
export const open = (node: string, image: string, more: object = {}) =>
  qmp('blockdev-add', {
    driver: image.endsWith('.qcow2') ? 'qcow2' : 'raw',
    'node-name': node,
    file: { driver: 'file', filename: `$D/${image}`, ...('read-only' in more && { 'read-only': more['read-only'] }) },
    ...more,
  })

export const startServer = qmp('nbd-server-start', { addr: { type: 'unix', data: { path: '$D/nbd.sock' } } })

export const exportDisk = (node: string, more: object = {}, options: StepOptions = {}) =>
  qmp('block-export-add', { type: 'nbd', id: node, 'node-name': node, writable: true, ...more }, options)
