// backup-begin: opens a pull session, frozen views of a machine's disks as exports; or pushes them into a repository.

import { z } from 'zod'
import { InvalidParameter } from '../../base/errors.ts'
import { operate } from '../../machines/quiesce/operate.ts'
import type { PullSession } from '../../machines/pull-session.ts'
import type { PushSession } from '../../machines/push-session.ts'
import { command } from '../command.ts'
import { uint64 } from '../qapi-type.ts'
import { quiesce } from '../quiesce-argument.ts'
import { sessionInfo } from '../session-info.ts'

/** A timer's longest. */
const MAX_EXPIRE_SECONDS = Math.floor((2 ** 31 - 1) / 1000)

export const backupBegin = command({
  name: 'backup-begin',
  summary:
    'Freezes a view of all disks of a machine at one instant, and exports it, with what changed since a checkpoint; or pushes it into a repository.',
  arguments: z.strictObject({
    machine: z.string(),
    mode: z.enum(['pull', 'push']),
    repository: z.string().optional().describe('Where to push to, as the configuration calls it'),
    name: z.string().optional().describe("The session's; by default the machine's and the time"),
    since: z
      .string()
      .optional()
      .describe(
        'A checkpoint: offer what changed since as the bitmap backup-DISK. Of a push: read what changed since; auto (the default): since the last push that is in the repository; full: read everything',
      ),
    checkpoint: z.string().optional().describe('Make the instant a checkpoint of this name'),
    description: z.string().optional().describe("The checkpoint's"),
    socket: z.string().optional().describe('A unix socket of its own, where the exports are called as the disks'),
    expire: uint64.optional().describe('Seconds after which the session ends by itself'),
    speed: uint64.optional().describe('Of a push: bytes a second that are read; 0, the default, is as fast as it goes'),
    quiesce,
  }),
  returns: sessionInfo,
  turn: false,
  async run({ machine: wanted, mode, repository, quiesce, speed, ...options }, { machines, backups, diskJobs, turns }) {
    const { machine, checkpoints } = machines.get(wanted)
    const begin = (name: string | undefined, work: () => Promise<PullSession | PushSession>) =>
      operate({
        turns,
        machine,
        operation: { kind: mode, name, repository },
        quiesce,
        work: async () => {
          for (const disk of machine.disks) diskJobs.checkCopy(machine, disk)
          return (await work()).info()
        },
      })
    if (mode === 'push') {
      const push = { machine, checkpoints, quiesce, speed, ...pushOptions(repository, options) }
      return begin(push.name, () => backups.beginPush(push))
    }
    if (repository !== undefined) throw new InvalidParameter("Parameter 'repository' is for mode 'push'")
    if (speed !== undefined)
      throw new InvalidParameter("Parameter 'speed' is for mode 'push': whoever pulls is as fast as it likes")
    const { expire, ...more } = options
    if (expire !== undefined && (expire < 1 || expire > MAX_EXPIRE_SECONDS))
      throw new InvalidParameter(`Parameter 'expire' expects 1 to ${MAX_EXPIRE_SECONDS} seconds`)
    const pull = { machine, checkpoints, quiesce, ...more, expireMs: expire && expire * 1000 }
    return begin(pull.name, () => backups.beginPull(pull))
  },
})

interface Given {
  readonly name?: string | undefined
  readonly since?: string | undefined
  readonly checkpoint?: string | undefined
  readonly description?: string | undefined
  readonly socket?: string | undefined
  readonly expire?: number | undefined
}

function pushOptions(repository: string | undefined, { name, since = 'auto', description, ...pullOnly }: Given) {
  if (repository === undefined) throw new InvalidParameter("Parameter 'repository' is missing: where to push to")
  const [extra] = Object.entries(pullOnly).find(([, value]) => value !== undefined) ?? []
  if (extra === 'checkpoint')
    throw new InvalidParameter(
      "Parameter 'checkpoint' is for mode 'pull': a push makes one of its own, for the next push to begin from",
    )
  if (extra !== undefined) throw new InvalidParameter(`Parameter '${extra}' is for mode 'pull'`)
  return { repository, name, since, description }
}
