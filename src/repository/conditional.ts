// Conditional writes whose outcome is known, also where a reply was lost: who cannot tell reads what is there, and compares.
//
// For that the body must be the writer's alone: session records and states carry an id and a count that nobody else writes.

import { setTimeout as sleep } from 'node:timers/promises'
import { NotThere, PreconditionFailed, Unavailable, type Target } from './target.ts'

/** How often a store that does not answer is asked again, beside what the target itself does. */
const ATTEMPTS = 3
const PAUSE_MS = 200

export interface Condition {
  readonly ifAbsent?: boolean
  readonly ifMatch?: string
}

/** The tag of the body once it is there. PreconditionFailed means that another body is, or was, and this one never will be. */
export async function putIf(target: Target, key: string, body: Uint8Array, condition: Condition, signal?: AbortSignal) {
  for (let attempt = 1; ; attempt++) {
    try {
      return (await target.put(key, body, { ...condition, signal })).tag
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

/** The object, or undefined where there is none. */
export async function find(target: Target, key: string, signal?: AbortSignal) {
  try {
    return await target.get(key, { signal })
  } catch (error) {
    if (error instanceof NotThere) return undefined
    throw error
  }
}
