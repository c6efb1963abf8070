// The second half of a commit, which whoever finds a committed session may do: its restore point is written, then the session goes.
//
// A restore point that was forgotten has a tombstone in its place, so doing it once more, however late, changes nothing. Tombstones go in the
// end; so whoever was stopped between looking for the session and writing, for longer than any request takes, looks again.

import { find } from './conditional.ts'
import { Damaged } from './faults.ts'
import { decodeSession, sessionKey, SESSIONS, type SessionRecord } from './session-record.ts'
import { PreconditionFailed, type Target } from './target.ts'

/** Tombstones stay for a quarter of an hour at least (collector.ts). */
const LOOK_AGAIN_MS = 60_000

export async function finishCommit(
  target: Target,
  { id, point }: SessionRecord,
  { cas = true, signal }: { cas?: boolean; signal?: AbortSignal | undefined } = {},
) {
  if (!point) throw new Error('a session without a restore point cannot be finished')
  const body = Buffer.from(point.manifest, 'base64')
  // Who was stopped for very long finds it done, and the restore point perhaps forgotten, and its tombstone gone as well.
  for (let looked = -Infinity; Date.now() - looked > LOOK_AGAIN_MS;) {
    looked = Date.now()
    if (!(await find(target, sessionKey(id), signal))) return
  }
  // Without compare-and-swap there is one writer, and nobody else to be careful of.
  if (cas || !(await find(target, point.key, signal))) {
    try {
      await target.put(point.key, body, { ...(cas && { ifAbsent: true }), signal })
    } catch (error) {
      if (!(error instanceof PreconditionFailed)) throw error // it is there, or has been forgotten
    }
  }
  await target.delete([sessionKey(id)], { signal })
}

export interface DamagedSession {
  readonly key: string
  readonly modified: Date
  readonly error: Damaged
}

/**
 * Every session there is. One that ends meanwhile may be missing, and so may one that began meanwhile. Whoever does not say what is to
 * become of one whose record is damaged does not get further than to that.
 */
export async function* listSessions(
  target: Target,
  signal?: AbortSignal,
  damaged?: (session: DamagedSession) => void,
): AsyncGenerator<{ record: SessionRecord; tag: string; modified: Date }> {
  for await (const { key, modified } of target.list(SESSIONS, { signal })) {
    const found = await find(target, key, signal)
    if (!found) continue
    let record: SessionRecord
    try {
      record = decodeSession(found.body, key)
    } catch (error) {
      if (!damaged || !(error instanceof Damaged)) throw error
      damaged({ key, modified, error })
      continue
    }
    yield { record, tag: found.tag, modified }
  }
}

/** For those who can do without what a damaged record said: a commit whose second half is lost, or a reader that will say so again. */
export const leaveDamaged = () => {}
