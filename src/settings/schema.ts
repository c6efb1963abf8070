// The schema of the configuration file: its shape, its defaults, and the sentence that each key is explained with.
//
// The types, the check, the JSON Schema for editors and the reference page are made from this.

import { z } from 'zod'
import { isAddressOrNetwork } from '../base/networks.ts'
import { isReference, objectionTo } from '../base/secret-reference.ts'
import { parseDuration, parseSize } from '../base/units.ts'
import { parseCalendar } from '../calendar/calendar.ts'
import type { CommandLine } from './settings.ts'

/** QEMU's limit for the name of a node, and a disk's node is called MACHINE.DISK. */
const MAX_NODE_NAME = 31
/** Node's timers hold no more than 2^31 - 1 milliseconds. */
const MAX_EXPIRE = '24d'

const path = z
  .string()
  .min(1, 'a path must not be empty')
  .refine(text => !text.startsWith('~/') && text !== '~', 'must be written out: "~" is nobody’s home folder here')
  .refine(text => !/^\$\{?[A-Za-z_]/.test(text), 'must be written out: variables are not filled in here')

/** What a path cannot be, but for who insists: `./s3://x` is one. */
export const isAddress = (text: string) => /^[a-z][a-z\d+.-]*:\/\//i.test(text)

const name = z
  .string()
  .regex(/^[A-Za-z][A-Za-z0-9_-]*$/, 'a name begins with a letter and goes on with letters, digits, "-" and "_"')

/** A text of ours with a meaning, given to `read`; what `read` does not understand is refused with `wanted`. */
const written = <T>(read: (text: string) => T | undefined, wanted: string) =>
  z.union([z.string(), z.number()], `must be ${wanted}`).transform((value, context) => {
    const result = read(String(value))
    if (result !== undefined) return result
    context.addIssue({ code: 'custom', message: `must be ${wanted}, not ${JSON.stringify(value)}` })
    return z.NEVER
  })

const size = written(text => parseSize(text) || undefined, 'a size such as 512M or 10GiB, in powers of 1024')

const duration = written(text => {
  const ms = parseDuration(text)
  return ms && ms <= parseDuration(MAX_EXPIRE)! ? ms : undefined
}, `a time with its unit, such as 90s, 10m or 24h, and at most ${MAX_EXPIRE}`)

/** What the system and our timers can count. */
const silenceOf = (text: string) => {
  const ms = parseDuration(text)
  return ms && ms >= 1000 && ms <= parseDuration(MAX_EXPIRE)! ? ms : undefined
}
const SILENCE = `a time of at least 1s with its unit, such as 90s or 10m, and at most ${MAX_EXPIRE}`

const addressWith = (usual: number) =>
  written(text => {
    const [, bracketed, plain, digits = String(usual)] = /^(?:\[([\da-f:.]+)\]|([\w.-]+))(?::(\d+))?$/i.exec(text) ?? []
    const [host, port] = [bracketed ?? plain, Number(digits)]
    return host !== undefined && !/^\d+$/.test(host) && port <= 65535 ? { host, port } : undefined
  }, `an address such as 127.0.0.1:${usual}, [::1]:${usual} or a host name, with a port up to 65535`)

const address = addressWith(10809)

const isLoopback = (host: string) => host === 'localhost' || host === '::1' || /^127(\.\d+){3}$/.test(host)

const tls = z.union(
  [
    z.literal('none'),
    z.strictObject({
      certificates: path.describe('A folder with ca-cert.pem, server-cert.pem and server-key.pem, as QEMU has it.'),
      'verify-peer': z.boolean().default(true).describe('Only clients are let in whose certificate ca-cert.pem has signed.'),
    }),
    z.strictObject({
      psk: path.describe('A file with lines of USER:KEY, the key in hexadecimal, as psktool writes it.'),
    }),
  ],
  'must be "none", or have "certificates: FOLDER" or "psk: FILE"',
)

const addressOrNetwork = z
  .string()
  .refine(isAddressOrNetwork, 'must be an address or a network, such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32')

const allowRule = z.strictObject({
  address: addressOrNetwork.optional().describe('The client comes from this address or network.'),
  certificate: z
    .string()
    .min(1)
    .optional()
    .describe(
      'The client has a certificate of this name, in which * and ? are wild: its common name; with "=" in it its distinguished name, "O=Example,CN=*"; with "DNS:" before it one of its alternative names.',
    ),
  user: z.string().min(1).optional().describe('The client has the key of this user, in which * and ? are wild.'),
  exports: z
    .array(z.string())
    .min(1)
    .default(['*'])
    .describe('The exports that this opens, in which * and ? are wild. Default: all.'),
  'read-only': z.boolean().default(false).describe('They may be read, and written by whom another rule lets.'),
})

const listener = z
  .strictObject({
    unix: path
      .optional()
      .describe('The path of a unix socket, or @NAME for one without a file. Who may open it may read and write every disk.'),
    mode: z
      .string()
      .regex(/^0?[0-7]{3}$/, 'must be three octal digits in quotes, such as "660"')
      .optional()
      .describe('Who may open the unix socket. Default: "660".'),
    tcp: address.optional().describe('An address and a port; without a port, 10809.'),
    tls: tls
      .optional()
      .describe(
        'What clients must prove who they are by: "certificates" or "psk". "none": whoever reaches the port may read and write every disk, and so may who listens on the way; an address other machines can reach needs these words.',
      ),
    allow: z
      .array(allowRule)
      .min(1)
      .optional()
      .describe('Who may use which exports: a client that no rule lets in does not see them. Default: all who can connect, all.'),
    'in-the-clear': z
      .array(z.string())
      .min(1)
      .optional()
      .describe('Exports that may be used without TLS too, in which * and ? are wild. Default: none.'),
    'keep-alive': written(text => (text === 'never' ? 0 : silenceOf(text)), `${SILENCE}, or "never"`)
      .optional()
      .describe('After how long a silence the system asks over TCP whether a client is still there. Default: 30s.'),
    idle: written(silenceOf, SILENCE)
      .optional()
      .describe('A client that has asked for nothing for this long is closed. Default: none is.'),
    speed: size
      .optional()
      .describe(
        'Bytes a second that a client may read and write, at most: over all connections of a user, a certificate or an address, and over a unix socket each of them. Default: as many as go.',
      ),
  })
  .superRefine(({ unix, mode, tcp, tls, allow = [], 'in-the-clear': inTheClear, 'keep-alive': keepAlive }, context) => {
    const issue = (path: (string | number)[], message: string) => context.addIssue({ code: 'custom', path, message })
    if ((unix === undefined) === (tcp === undefined)) issue([], 'needs either unix: PATH or tcp: ADDRESS:PORT')
    else if (unix !== undefined && tls !== undefined) issue(['tls'], 'is for tcp: only')
    else if (unix !== undefined && keepAlive !== undefined) issue(['keep-alive'], 'is for tcp: only')
    else if (mode !== undefined && (unix === undefined || unix.startsWith('@')))
      issue(['mode'], 'is for the path of a unix socket')
    else if (tcp && tls === undefined && !isLoopback(tcp.host))
      issue(
        ['tcp'],
        'can be reached by other machines: say tls: { certificates: FOLDER } beside it, use a unix socket or 127.0.0.1, or say tls: none',
      )
    if (inTheClear && typeof tls !== 'object') issue(['in-the-clear'], 'needs tls: { certificates: FOLDER } or { psk: FILE }')
    allow.forEach((rule, index) => {
      const needs = (key: 'address' | 'certificate' | 'user', there: boolean, what: string) => {
        if (rule[key] !== undefined && !there) issue(['allow', index, key], what)
      }
      const by = typeof tls === 'object' ? tls : undefined
      needs('address', tcp !== undefined, 'is for tcp: only; who may open a unix socket, "mode" says')
      needs(
        'certificate',
        by !== undefined && 'certificates' in by && by['verify-peer'],
        'needs tls: { certificates: FOLDER } that verifies clients',
      )
      needs('user', by !== undefined && 'psk' in by, 'needs tls: { psk: FILE }')
    })
  })

const disk = z.strictObject({
  image: path
    .refine(
      image => !isAddress(image),
      'must be the path of a file or a block device; disks behind an address come in a later version',
    )
    .describe('The path of the image, a file or a block device.'),
  format: z
    .enum(['raw', 'qcow2'], 'must be "raw" or "qcow2"')
    .optional()
    .describe(
      '"qcow2" opens the image with those behind it that it names. "raw" serves the bytes of the image as they are. Without a format an image that looks like one that is not raw is refused.',
    ),
  bitmaps: path
    .optional()
    .describe(
      'Where the dirty bitmaps of a raw image or block device are kept, a qcow2 file that is made if it is not there. Default: bitmaps/MACHINE.DISK.qcow2 in the state folder. A qcow2 image keeps its own.',
    ),
  'read-only': z.boolean().default(false).describe('Nobody writes to this disk.'),
  'max-clients': z
    .int('must be a whole number')
    .min(1, 'must be 1 or more')
    .optional()
    .describe('More clients at once than these are turned away. Default: as many as come.'),
  'single-writer': z
    .boolean()
    .optional()
    .describe(
      'One client at a time may write to this disk; to others it is read-only until that one has gone. Default: all may.',
    ),
})

const wantedCommand = 'must be a command: a text for the shell, or a list of the program and its arguments'

const commandLine = z
  .union([z.string().min(1), z.array(z.string()).min(1, wantedCommand)], wantedCommand)
  .transform((command): CommandLine =>
    typeof command === 'string' ? ['/bin/sh', '-c', command] : (command as [string, ...string[]]),
  )

const quiesce = z
  .strictObject({
    agent: path.optional().describe('The unix socket of the QEMU guest agent’s port on this host. It freezes and thaws.'),
    freeze: commandLine.optional().describe('A command that freezes the guest; the instant is taken when it has ended well.'),
    thaw: commandLine
      .optional()
      .describe('A command that thaws it. It is run whatever came of the freeze, and again until it ends well.'),
    timeout: duration.prefault('30s').describe('How long each of them may take. Default: 30s.'),
    'on-failure': z
      .enum(['fail', 'continue'], 'must be "fail" or "continue"')
      .default('fail')
      .describe(
        '"continue": when the guest cannot be frozen the instant is taken all the same, and is as after a power cut. With --quiesce it fails in any case.',
      ),
  })
  .superRefine(({ agent, freeze, thaw }, context) => {
    const commands = freeze !== undefined || thaw !== undefined
    if ((agent !== undefined) === commands || (freeze === undefined) !== (thaw === undefined))
      context.addIssue({ code: 'custom', message: 'needs either agent: SOCKET, or both freeze: COMMAND and thaw: COMMAND' })
  })

const hooks = z.strictObject({
  before: commandLine.optional().describe('Run first. When it fails, nothing else is done.'),
  after: commandLine.optional().describe('Run last, whatever came of it.'),
  timeout: duration.prefault('1m').describe('How long each of them may take. Default: 1m.'),
})

const machine = z.strictObject({
  disks: z
    .record(
      name,
      disk.refine(({ format, bitmaps }) => format !== 'qcow2' || bitmaps === undefined, {
        path: ['bitmaps'],
        message: 'is for raw images: a qcow2 image keeps its bitmaps itself',
      }),
    )
    .refine(disks => Object.keys(disks).length > 0, 'a machine needs at least one disk')
    .describe('The disks, by name. All of them are checkpointed and backed up at one instant.'),
  quiesce: quiesce
    .optional()
    .describe(
      'How the guest’s file systems are frozen for the instant of a checkpoint, a backup or a snapshot. With it they are, unless --no-quiesce is said.',
    ),
  hooks: hooks.optional().describe('Commands around each checkpoint, backup and snapshot.'),
})

const machines = z.record(name, machine).superRefine((all, context) => {
  for (const [name, { disks }] of Object.entries(all)) {
    for (const disk of Object.keys(disks)) {
      const excess = name.length + 1 + disk.length - MAX_NODE_NAME
      if (excess <= 0) continue
      const message = `the names of machine and disk are ${excess} ${excess === 1 ? 'letter' : 'letters'} too long together: "${name}.${disk}" must fit into ${MAX_NODE_NAME}`
      context.addIssue({ code: 'custom', path: [name, 'disks', disk], message })
    }
  }
})

const secret = z.string().superRefine((reference, context) => {
  const message = objectionTo(reference)
  if (message !== undefined) context.addIssue({ code: 'custom', message })
})

const repository = z.looseObject({
  plugin: z
    .string()
    .min(1, 'must name a plugin')
    .describe('What keeps it: "file", "s3", or the name of an npm package. The keys beside it are the plugin’s own.'),
  encryption: z
    .strictObject({ key: secret.describe('Where the key is: file:/PATH, credential:NAME or env:NAME.') })
    .optional()
    .describe('With it everything in the repository is encrypted. It is decided when the repository is made.'),
})

const expression = z.string().superRefine((text, context) => {
  const calendar = parseCalendar(text)
  const message =
    typeof calendar === 'string'
      ? `is no time of systemd (OnCalendar) or cron, such as "*-*-* 02:00", "Mon..Fri 22:30" or "0 2 * * 1-5": ${calendar}`
      : calendar.next(0) === undefined
        ? 'never comes: there is no such date'
        : undefined
  if (message !== undefined) context.addIssue({ code: 'custom', message })
})

const timeZone = z.string().superRefine((name, context) => {
  if (typeof parseCalendar('daily', name) === 'string')
    context.addIssue({ code: 'custom', message: `names no time zone such as Europe/Berlin or UTC: ${JSON.stringify(name)}` })
})

const times = z.union(
  [expression, z.array(expression)],
  'must be an expression of systemd or cron in quotes, such as "*-*-* 02:00", or a list of them',
)

const kept = z.int('must be a whole number').min(1, 'must be 1 or more').max(10_000, 'must be 10000 or less').optional()

const keep = z
  .strictObject({
    last: kept.describe('The newest ones.'),
    hourly: kept.describe('The newest of so many hours.'),
    daily: kept.describe('The newest of so many days.'),
    weekly: kept.describe('The newest of so many weeks.'),
    monthly: kept.describe('The newest of so many months.'),
    yearly: kept.describe('The newest of so many years.'),
    within: written(text => parseDuration(text) || undefined, 'a time with its unit, such as 36h or 7d')
      .optional()
      .describe('Everything that is not older.'),
  })
  .refine(rules => Object.keys(rules).length > 0, 'keeps nothing: say what to keep, such as daily: 14')

const schedule = z
  .strictObject({
    machines: z.array(name).min(1, 'must name at least one machine').describe('Which machines, by name.'),
    mode: z
      .enum(['push', 'pull'], 'must be "push" or "pull"')
      .default('push')
      .describe(
        '"push": into the repository. "pull": a session is opened, called SCHEDULE-MACHINE, for a backup program to read and finish within the window.',
      ),
    repository: name.optional().describe('Where to push to.'),
    at: times
      .default([])
      .describe(
        'When: an expression of systemd (Mon..Fri *-*-* 02:00) or cron (0 2 * * 1-5), or a list of them. Without it the schedule runs when it is asked to, such as by a timer of systemd.',
      ),
    'time-zone': timeZone.optional().describe('For times that name none of their own. Default: this machine’s.'),
    jitter: duration
      .optional()
      .describe('Begin later by up to so long, by always the same, so that not all begin at once. Default: on time.'),
    'catch-up': z
      .boolean()
      .default(true)
      .describe('A time that came while the daemon did not run, or that it did not bring to its end, is made up for, once.'),
    window: duration
      .optional()
      .describe(
        'How long after it is due machines may still be begun; what is under way then goes on. A pull session ends then.',
      ),
    retries: z
      .int('must be a whole number')
      .min(0, 'must be 0 or more')
      .max(100, 'must be 100 or less')
      .default(2)
      .describe('How often a machine whose backup failed is tried again.'),
    'retry-after': duration.prefault('5m').describe('How long after; each time twice as long, and an hour at most. Default: 5m.'),
    'stale-after': duration
      .optional()
      .describe(
        'How old the newest good backup of a machine may become before "notify", alerts and monitors say that it is stale.',
      ),
    keep: keep
      .optional()
      .describe('Which restore points are kept, by Proxmox Backup’s rules; what no rule keeps is forgotten and collected.'),
  })
  .superRefine(({ mode, repository, window, keep: rules }, context) => {
    const object = (path: string[], message: string) => context.addIssue({ code: 'custom', path, message })
    if (mode === 'push' && repository === undefined) object([], 'needs the repository to push to')
    if (mode === 'pull' && window === undefined) object([], 'needs a window, at the end of which the session ends')
    if (mode === 'pull' && repository !== undefined) object(['repository'], 'is for mode: push')
    if (mode === 'pull' && rules !== undefined) object(['keep'], 'is for mode: push')
  })

/** A unix socket or an address; what is told there is for this machine only, unless it is said to be for others. */
const place = (usual: number, what: string) => ({
  unix: path.optional().describe('The path of a unix socket.'),
  listen: addressWith(usual).optional().describe(`An address and a port; without a port, ${usual}.`),
  public: z
    .boolean()
    .default(false)
    .describe(`Other machines may read ${what}, in the clear: they name machines, disks and schedules.`),
})

interface Place {
  readonly unix?: string | undefined
  readonly listen?: { readonly host: string } | undefined
  readonly public: boolean
}

function checkPlace({ unix, listen, public: isPublic }: Place, context: z.RefinementCtx) {
  if ((unix === undefined) === (listen === undefined))
    context.addIssue({ code: 'custom', message: 'needs either unix: PATH or listen: ADDRESS:PORT' })
  else if (listen && !isPublic && !isLoopback(listen.host)) {
    const message =
      'can be reached by other machines, in the clear: use a unix socket or 127.0.0.1, or say public: true beside it'
    context.addIssue({ code: 'custom', path: ['listen'], message })
  }
}

const metrics = z.strictObject(place(9750, 'the metrics')).superRefine(checkPlace)

const web = z
  .strictObject({
    ...place(9751, 'the pages'),
    hosts: z
      .array(z.string().regex(/^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$/, 'must be the name of a host, without a port'))
      .default([])
      .describe('Names by which browsers may call it, beside localhost and its address.'),
  })
  .superRefine(checkPlace)

const webhook = z.string().refine(text => {
  if (isReference(text)) return objectionTo(text) === undefined
  return URL.canParse(text) && /^https?:$/.test(new URL(text).protocol)
}, 'must be an http:// or https:// address, or where one stands: file:/PATH, credential:NAME or env:NAME')

const notify = z
  .strictObject({
    when: z
      .array(z.enum(['failed', 'warning', 'stale', 'recovered'], 'must be "failed", "warning", "stale" or "recovered"'))
      .min(1, 'must name at least one of failed, warning, stale and recovered')
      .default(['failed', 'stale', 'recovered'])
      .describe('Of what.'),
    schedules: z.array(name).min(1, 'must name at least one schedule').optional().describe('Only of these. Default: all.'),
    exec: commandLine.optional().describe('A command, told by its environment.'),
    webhook: webhook.optional().describe('An address that gets a POST with JSON, or where the address stands.'),
    timeout: duration.prefault('30s').describe('How long it may take. Default: 30s.'),
  })
  .refine(
    ({ exec, webhook: url }) => (exec === undefined) !== (url === undefined),
    'needs either exec: COMMAND or webhook: ADDRESS',
  )

export const schema = z
  .strictObject({
    state: path
      .default('/var/lib/stillpoint')
      .describe('The folder of what must survive a restart: checkpoints, and which daemon owns them.'),
    control: z
      .strictObject({
        socket: path
          .default('/run/stillpoint/control.sock')
          .describe('The unix socket for commands, as QMP. Who may open it is trusted as the daemon’s owner.'),
      })
      .prefault({}),
    nbd: z
      .array(listener)
      .default([{ unix: '/run/stillpoint/nbd.sock' }])
      .describe('Where NBD clients connect. Each disk is the export MACHINE/DISK.'),
    machines: machines.prefault({}).describe('The machines, by name.'),
    repositories: z.record(name, repository).default({}).describe('Where pushed backups live, by name.'),
    scratch: z
      .strictObject({
        path: path
          .optional()
          .describe(
            'A folder for what open backup sessions keep of the data that is overwritten meanwhile. Default: "scratch" in the state folder.',
          ),
        limit: size
          .prefault('10G')
          .describe(
            'How much all of them may keep together. A session that needs more breaks, and the guests go on. Default: 10G.',
          ),
        timeout: duration
          .refine(ms => ms % 1000 === 0, 'must be whole seconds')
          .prefault('10s')
          .describe(
            'How long a guest’s write waits for its old data to be kept. Then the session breaks, and the guest goes on. Default: 10s.',
          ),
      })
      .prefault({}),
    sessions: z
      .strictObject({
        expire: duration
          .prefault('24h')
          .describe('How long a pull session stays open when nobody finishes or aborts it. Default: 24h.'),
      })
      .prefault({}),
    schedules: z.record(name, schedule).default({}).describe('Backups that begin by themselves, by name.'),
    metrics: metrics.optional().describe('Where Prometheus finds the metrics. Default: nowhere.'),
    web: web.optional().describe('Where browsers find the status page. Default: nowhere.'),
    notify: z.array(notify).default([]).describe('Who is told when schedules fail, go stale and recover.'),
    limits: z
      .strictObject({
        backups: z
          .int('must be a whole number')
          .min(1, 'must be 1 or more')
          .max(1000, 'must be 1000 or less')
          .default(2)
          .describe('How many machines schedules back up at once. Default: 2.'),
      })
      .prefault({}),
  })
  .meta({ title: 'Stillpoint configuration' })

export type Checked = z.output<typeof schema>

let made: ReturnType<typeof makeJsonSchema> | undefined
const makeJsonSchema = () => z.toJSONSchema(schema, { io: 'input' })
/** For editors, and for the names of the keys: of a configuration that is good nobody asks for them. */
export const jsonSchema = () => (made ??= makeJsonSchema())
