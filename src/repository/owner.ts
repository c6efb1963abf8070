// The one writer of a repository whose store cannot compare and swap: `owner` says which host that is.
//
// Every host may read. Who is not the owner and wants to write, forget or collect hears NotOwner, until it takes the repository over,
// which somebody must ask for: it is wrong while the owner is at work, so it is refused while the owner's sessions show life. It
// expires them: an owner that was only silent finds that at its next beat, and at the latest before it commits.

import { hash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'
import { Busy, InvalidParameter } from '../base/errors.ts'
import { canonicalJson, parseJson } from './canonical-json.ts'
import { listSessions } from './commit.ts'
import { find, putIf } from './conditional.ts'
import { Damaged, NotOwner } from './faults.ts'
import { encodeSession, sessionKey } from './session-record.ts'
import { BEAT_MS } from './session.ts'
import { PreconditionFailed, type Target } from './target.ts'

export const OWNER = 'owner'
/** A session that was silent for as long is no sign of life. */
const STALE_MS = 10 * BEAT_MS
/** Of two who take it over at once one is last; the other sees it after this. */
const SETTLE_MS = 1000

const owner = z.object({
  version: z.literal(1),
  /** The same for all that runs on a host, and no other's. */
  id: z.string(),
  host: z.string(),
  since: z.iso.datetime(),
})
export type Owner = z.infer<typeof owner>
export type Host = Pick<Owner, 'id' | 'host'>

/** This machine: by systemd's machine id, which is not told to others as it is (machine-id(5)); else by its name. */
export function thisHost(): Host {
  const host = hostname()
  return { id: hash('sha256', `stillpoint owner ${machineId() ?? host}`).slice(0, 32), host }
}

function machineId() {
  try {
    return readFileSync('/etc/machine-id', 'utf8').trim() || undefined
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

export interface Owned {
  readonly target: Target
  readonly cas: boolean
  readonly me: Host
}

/** Undefined where any host may write, or nobody has yet. */
export async function ownerOf({ target, cas }: Owned, signal?: AbortSignal): Promise<Owner | undefined> {
  const found = cas ? undefined : await find(target, OWNER, signal)
  try {
    return found && parseJson(found.body, owner, `${target.location}: ${OWNER}`)
  } catch (error) {
    if (!(error instanceof Damaged)) throw error
    throw new Damaged(`${error.message}; "stillpoint repo take-over" makes this host the one that writes`, { cause: error })
  }
}

/** Who comes first owns it. */
export async function needOwner(repository: Owned, signal?: AbortSignal): Promise<void> {
  const { target, cas, me } = repository
  if (cas) return
  const there = await ownerOf(repository, signal)
  if (!there) await claim(repository, signal)
  else if (there.id !== me.id)
    throw new NotOwner(
      `${target.location}: its store cannot compare and swap, so one host writes to it, and that has been ${there.host} since ${there.since}; when ${there.host} writes no more, "stillpoint repo take-over" makes it this host`,
    )
}

/** Who is to own it says so anew. */
function unreadableOwner(error: unknown) {
  if (error instanceof Damaged) return undefined
  throw error
}

async function claim({ target, me }: Owned, signal?: AbortSignal) {
  const record: Owner = { version: 1, ...me, since: new Date().toISOString() }
  await putIf(target, OWNER, canonicalJson(record), { ifAbsent: true }, { cas: false, signal })
}

export interface TakeOverOptions {
  readonly staleMs?: number
  readonly settleMs?: number
  readonly signal?: AbortSignal
}

/** Makes this host the owner. Busy while the present one shows life; NotOwner when somebody else did the same just now. */
export async function takeOver(repository: Owned, options: TakeOverOptions = {}): Promise<void> {
  const { target, cas, me } = repository
  const { staleMs = STALE_MS, settleMs = SETTLE_MS, signal } = options
  if (cas) throw new InvalidParameter(`${target.location}: any number of hosts may write to it; there is nothing to take over`)
  const before = await ownerOf(repository, signal).catch(unreadableOwner)
  if (before?.id === me.id) return
  const now = await storeTime(repository, signal)
  const unreadable: Date[] = []
  const sessions = await Array.fromAsync(listSessions(target, signal, ({ modified }) => unreadable.push(modified)))
  if (unreadable.some(modified => now - modified.getTime() < staleMs))
    throw new Busy(
      `${target.location}: somebody was at work a moment ago, whose session is damaged; wait until nobody has been for ${staleMs / 60_000} minutes`,
    )
  const writers = sessions.filter(({ record }) => record.kind === 'writer' && record.state === 'active')
  const alive = writers.find(({ modified }) => now - modified.getTime() < staleMs)
  if (alive)
    throw new Busy(
      `${target.location}: ${alive.record.host} was at work ${Math.round((now - alive.modified.getTime()) / 1000)} s ago; stop it there, and wait until it has been silent for ${staleMs / 60_000} minutes`,
    )
  await target.put(OWNER, canonicalJson({ version: 1, ...me, since: new Date().toISOString() } satisfies Owner), { signal })
  await sleep(settleMs, undefined, { signal })
  await needOwner(repository, signal)
  for (const { record, tag } of writers) {
    const expired = encodeSession({ ...record, state: 'expired', beat: record.beat + 1 })
    try {
      await putIf(target, sessionKey(record.id), expired, { ifMatch: tag }, { cas, signal })
    } catch (error) {
      if (!(error instanceof PreconditionFailed)) throw error
      throw new Busy(`${target.location}: ${record.host} has just shown that it is at work; stop it there, and take over again`, {
        cause: error,
      })
    }
  }
}

/** By the store's clock, which is what the times of its objects are by. */
async function storeTime({ target, me }: Owned, signal?: AbortSignal): Promise<number> {
  const key = `probe/clock-${me.id}`
  await target.put(key, Buffer.alloc(1), { signal })
  try {
    for await (const { modified } of target.list(key, { signal })) return modified.getTime()
  } finally {
    await target.delete([key])
  }
  return Date.now()
}
