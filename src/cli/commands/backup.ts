// stillpoint backup: sessions in which a machine's disks are read as they were at one instant, by backup programs or into a repository.

import { resolve } from 'node:path'
import { Option } from 'commander'
import { connectDaemon } from '../connect.ts'
import { seconds } from '../arguments.ts'
import { verb, type Noun } from '../define.ts'
import { Misuse } from '../failure.ts'
import { formatSize } from '../../base/units.ts'
import { formatSpan, formatTime } from '../format.ts'
import { note, print, printJson } from '../output.ts'
import { checkPushed, progressOf, waitForPush } from '../push-text.ts'
import { quiesceOptions } from '../quiesce-options.ts'
import type { Listener, SessionInfo } from '../replies.ts'
import { describeSession, sessionForPrograms } from '../session-text.ts'
import { table, type Column } from '../table.ts'
import { sizeOf } from './disk/named-disk.ts'

const SESSION = 'the session'

interface StartOptions {
  pull?: boolean
  /** The repository. */
  push?: string
  async?: boolean
  name?: string
  since?: string
  checkpoint?: string
  description?: string
  /** The session's own. */
  socket?: string
  /** Seconds. */
  expire?: number
  speed?: string
  quiesce?: boolean
}

const start = verb<{ machine: string }, StartOptions>({
  name: 'start',
  summary: 'back up a machine: into a repository, or as a session that a backup program reads over NBD',
  details:
    'All disks are frozen at one instant, and guests go on writing; what they overwrite is kept in scratch space until the session ends. --push: the daemon reads what changed since the last push into the repository of its configuration; the command waits for it, and ^C leaves it to the daemon. --pull: prints the address of each disk, for nbdcopy, qemu-img and whatever else speaks NBD; the session stays until it is finished or aborted, or expires.',
  arguments: { '<machine>': 'the machine, as the configuration calls it' },
  options: [
    new Option('--push <repository>', 'the daemon reads, and stores a restore point there'),
    new Option('--async', 'with --push: do not wait for its end'),
    new Option('--pull', 'a backup program connects and reads').conflicts('push'),
    new Option('--name <name>', 'what to call the session (default: the machine and the time)'),
    new Option(
      '--since <checkpoint>',
      'an increment: also say what changed since then; with --push: auto (the default: since the last push), full (read everything), or a checkpoint',
    ),
    new Option('--speed <bytes>', 'with --push: read so much a second, at most, such as 50M (default: no limit)'),
    new Option('--checkpoint <name>', 'make the instant of the backup a checkpoint, for the next increment'),
    new Option('--description <text>', 'a note to keep with the checkpoint'),
    ...quiesceOptions,
    new Option('--socket <path>', "a unix socket of the session's own, where its exports are called as the disks"),
    new Option('--expire <time>', 'end it by itself after 90s, 10m, 24h (default: as configured)').argParser(seconds),
  ],
  namesDaemon: false,
  examples: [
    ['stillpoint backup start db --push offsite', 'a restore point in the repository, of what changed'],
    ['stillpoint backup start db --pull --name full --checkpoint full', 'a full backup, from which increments can follow'],
    ['stillpoint backup start db --pull --name more --since full --checkpoint more', 'an increment since then'],
    [`stillpoint backup start db --pull --json | jq -r '.disks[].uri'`, 'only the addresses'],
    ['stillpoint --socket ./control.sock backup start db --pull', "--socket before the noun is the daemon's"],
  ],
  async run({ args: { machine }, options, json, socket }) {
    const { pull, push, async, name, since, checkpoint, description, socket: ownSocket, expire, quiesce } = options
    if (push !== undefined) return startPush(machine, push, options, { json, socket })
    if (!pull)
      throw new Misuse(
        'Say how the backup is read: --push REPOSITORY stores it there, --pull opens a session for a backup program that speaks NBD',
      )
    if (options.speed !== undefined) throw new Misuse('--speed is for --push: whoever pulls is as fast as it likes')
    if (async) throw new Misuse('--async is for --push: --pull waits for nothing')
    if (description !== undefined && checkpoint === undefined)
      throw new Misuse('--description is kept with a checkpoint: name it with --checkpoint')
    await using daemon = await connectDaemon(socket)
    // The daemon has a working directory of its own.
    const own = ownSocket && resolve(ownSocket)
    const asked = { machine, mode: 'pull', name, since, checkpoint, description, socket: own, expire, quiesce }
    // Asked before, so that nothing can fail once there is a session.
    const { nbd } = await daemon.ask('query-daemon')
    tell(await daemon.ask('backup-begin', asked), nbd, json)
  },
})

async function startPush(
  machine: string,
  repository: string,
  { async, name, since, description, checkpoint, socket: ownSocket, expire, quiesce, speed: asked }: StartOptions,
  { json, socket }: { readonly json: boolean; readonly socket: string },
) {
  if (checkpoint !== undefined || ownSocket !== undefined || expire !== undefined)
    throw new Misuse(
      '--checkpoint, --socket and --expire are for --pull; a push makes a checkpoint of its own, and ends by itself',
    )
  const speed = sizeOf('--speed', asked)
  await using daemon = await connectDaemon(socket)
  const wanted = { machine, mode: 'push', repository, name, since, description, quiesce, speed }
  const begun = await daemon.ask('backup-begin', wanted)
  const session = async ? begun : await waitForPush(daemon, begun)
  if (json || session.status !== 'failed') tell(session, [], json)
  checkPushed(session)
}

const estimate = verb<{ machine: string }, { push?: string; since?: string }>({
  name: 'estimate',
  summary: 'say what a push would read, and about what it would store, were it begun now',
  details:
    'Nothing is frozen, and nothing of the disks is read. What is stored is worked out from how the disk was compressed before, and is less where the repository has some of it already; where a disk has to be compared nobody can tell.',
  arguments: { '<machine>': 'the machine, as the configuration calls it' },
  options: [
    new Option('--push <repository>', 'where to'),
    new Option('--since <checkpoint>', 'as of backup start: auto (the default), full, or a checkpoint'),
  ],
  examples: [['stillpoint backup estimate db --push offsite', 'how much the next push has to do']],
  async run({ args: { machine }, options: { push: repository, since }, json, socket }) {
    if (repository === undefined) throw new Misuse('say where it would be pushed to: --push REPOSITORY')
    await using daemon = await connectDaemon(socket)
    const { disks } = await daemon.ask('backup-estimate', { machine, repository, since })
    if (json) return disks.forEach(disk => printJson({ machine, repository, ...disk }))
    print(
      table(disks, [
        { title: 'DISK', of: ({ disk }) => disk },
        { title: 'SIZE', right: true, of: ({ size }) => formatSize(size) },
        { title: 'TO READ', right: true, of: ({ bytes }) => formatSize(bytes) },
        {
          title: 'TO STORE',
          right: true,
          of: ({ stored }) => (stored === undefined ? undefined : `at most ${formatSize(stored)}`),
        },
        { title: 'READ', of: ({ read, why }) => `${read}: ${why}` },
      ]),
    )
  },
})

const list = verb({
  name: 'list',
  summary: 'list the sessions that are open, and the last push of each machine to each repository',
  examples: [['stillpoint backup list', 'what is open, and until when']],
  async run({ json, socket }) {
    await using daemon = await connectDaemon(socket)
    const sessions = await daemon.ask('query-backups')
    if (json) {
      const { nbd } = await daemon.ask('query-daemon')
      return sessions.forEach(session => printJson(sessionForPrograms(session, nbd)))
    }
    if (sessions.length === 0) note('No session is open.')
    print(sessionTable(sessions))
  },
})

const pushColumns: readonly Column<SessionInfo>[] = [
  { title: 'PUSHED TO', of: ({ repository, point }) => point ?? repository },
  { title: 'PROGRESS', of: progressOf },
]

/** Also for the status. */
export const sessionTable = (sessions: readonly SessionInfo[]) =>
  table(sessions, [
    { title: 'SESSION', of: ({ name }) => name },
    { title: 'MACHINE', of: ({ machine }) => machine },
    { title: 'STATUS', of: ({ status }) => status },
    { title: 'SINCE', of: ({ since }) => since },
    { title: 'CHECKPOINT', of: ({ checkpoint }) => checkpoint },
    { title: 'INSTANT', of: ({ time }) => formatTime(time) },
    { title: 'EXPIRES IN', of: ({ expires }) => expires && formatSpan(Date.parse(expires) - Date.now()) },
    ...(sessions.some(({ mode }) => mode === 'push') ? pushColumns : []),
    { title: 'PROBLEM', of: ({ reason }) => reason },
  ])

const show = verb<{ session: string }>({
  name: 'show',
  summary: 'show a session with the addresses of its disks, or how a push goes or went',
  arguments: { '<session>': SESSION },
  examples: [['stillpoint backup show full', 'the addresses again, and how much changed']],
  async run({ args: { session: name }, json, socket }) {
    await using daemon = await connectDaemon(socket)
    const { nbd } = await daemon.ask('query-daemon')
    for (const session of await daemon.ask('query-backups', { name })) tell(session, nbd, json)
  },
})

function tell(session: SessionInfo, nbd: readonly Listener[], json: boolean) {
  if (json) return printJson(sessionForPrograms(session, nbd))
  print(describeSession(session, nbd))
  if (session.mode === 'pull' && session.socket === undefined && nbd.length === 0)
    note('The daemon listens nowhere for NBD clients: add a place to "nbd" in its configuration, or give the session a --socket.')
}

const finish = verb<{ session: string }>({
  name: 'finish',
  summary: 'end a session whose reader has all it wanted',
  details: 'A checkpoint that was made with it stays, for the next increment to begin from.',
  arguments: { '<session>': SESSION },
  examples: [
    ['stillpoint backup finish full', 'all of it has been read'],
    ['if nbdcopy "$uri" root.raw; then stillpoint backup finish full; else stillpoint backup abort full; fi', 'one or the other'],
  ],
  async run({ args: { session: name }, json, socket }) {
    await using daemon = await connectDaemon(socket)
    await daemon.ask('backup-finish', { name })
    if (json) printJson({ name, finished: true })
  },
})

const abort = verb<{ session: string }>({
  name: 'abort',
  summary: 'end a session that came to nothing',
  details: 'A checkpoint that was made with it is taken back. A push that has ended is only forgotten: its restore point stays.',
  arguments: { '<session>': SESSION },
  examples: [['stillpoint backup abort full', 'what was read of it is not to be used']],
  async run({ args: { session: name }, json, socket }) {
    await using daemon = await connectDaemon(socket)
    await daemon.ask('backup-abort', { name })
    if (json) printJson({ name, aborted: true })
  },
})

export const backup: Noun = {
  name: 'backup',
  summary: 'back up machines: into repositories, or as views for backup programs',
  verbs: [start, estimate, list, show, finish, abort],
}
