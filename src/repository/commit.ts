// The second half of a commit, which whoever finds a committed session may do: its restore point is written, then the session goes.
//
// A restore point that was forgotten has a tombstone in its place, so doing it once more, however late, changes nothing.

import { find } from './conditional.ts'
import { decodeSession, sessionKey, SESSIONS, type SessionRecord } from './session-record.ts'
import { PreconditionFailed, type Target } from './target.ts'

export async function finishCommit(
  target: Target,
  { id, point }: SessionRecord,
  { cas = true, signal }: { cas?: boolean; signal?: AbortSignal | undefined } = {},
) {
  if (!point) throw new Error('a session without a restore point cannot be finished')
  const body = Buffer.from(point.manifest, 'base64')
  // Who was stopped here for very long finds it done, and the restore point perhaps forgotten, and its tombstone gone as well.
  if (!(await find(target, sessionKey(id), signal))) return
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

/** Every session there is. One that ends meanwhile may be missing, and so may one that began meanwhile. */
export async function* listSessions(
  target: Target,
  signal?: AbortSignal,
): AsyncGenerator<{ record: SessionRecord; tag: string; modified: Date }> {
  for await (const { key, modified } of target.list(SESSIONS, { signal })) {
    const found = await find(target, key, signal)
    if (found) yield { record: decodeSession(found.body, key), tag: found.tag, modified }
  }
}
