// Conditional writes whose outcome is known, also where a reply was lost: who cannot tell reads what is there, and compares.
//
// For that the body must be the writer's alone: session records and states carry an id and a count that nobody else writes.
//
// On a store without conditions (`cas: false`) the condition is looked at first, and then the object is written. That stops everybody
// but those who do it in the very same moment; of whom there should be none, as the repository has one writer (owner.ts).

import { setTimeout as sleep } from 'node:timers/promises'
import { NotThere, PreconditionFailed, Unavailable, type Target } from './target.ts'

/** How often a store that does not answer is asked again, beside what the target itself does. */
const ATTEMPTS = 3
const PAUSE_MS = 200

export interface Condition {
  readonly ifAbsent?: boolean
  readonly ifMatch?: string
}

export interface Circumstances {
  /** Whether the store keeps conditions. */
  readonly cas: boolean
  readonly signal?: AbortSignal | undefined
}

/** The tag of the body once it is there. PreconditionFailed means that another body is, or was, and this one never will be. */
export async function putIf(
  target: Target,
  key: string,
  body: Uint8Array,
  condition: Condition,
  { cas, signal }: Circumstances,
): Promise<string> {
  for (let attempt = 1; ; attempt++) {
    try {
      if (!cas) await look(target, key, condition, signal)
      return (await target.put(key, body, { ...(cas && condition), signal })).tag
    } catch (error) {
      if (!(error instanceof PreconditionFailed || error instanceof Unavailable)) throw error
      const found = await find(target, key, signal)
      if (found && Buffer.compare(found.body, body) === 0) return found.tag
      if (error instanceof PreconditionFailed) throw error
      if (condition.ifAbsent ? found : found?.tag !== condition.ifMatch) throw new PreconditionFailed(key)
      if (attempt === ATTEMPTS) throw error
      await sleep(PAUSE_MS * attempt, undefined, { signal })
    }
  }
}

async function look(target: Target, key: string, { ifAbsent, ifMatch }: Condition, signal: AbortSignal | undefined) {
  if (!ifAbsent && ifMatch === undefined) return
  const found = await find(target, key, signal)
  if (ifAbsent ? found : found?.tag !== ifMatch) throw new PreconditionFailed(key)
}

/** The object, or undefined where there is none. */
export async function find(target: Target, key: string, signal?: AbortSignal) {
  try {
    return await target.get(key, { signal })
  } catch (error) {
    if (error instanceof NotThere) return undefined
    throw error
  }
}
