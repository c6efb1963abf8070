// What a store really does with conditions, found out by trying both ways: some refuse them, and one answers 200 and ignores them.

import { randomUUID } from 'node:crypto'
import { messageOf, NotSupported } from '../base/errors.ts'
import { PreconditionFailed, type Target } from './target.ts'

export interface Abilities {
  /** Conditional creates and compare-and-swap both hold. */
  readonly cas: boolean
  /** Why not, in a sentence. */
  readonly why?: string
}

export async function probe(target: Target, signal?: AbortSignal): Promise<Abilities> {
  const key = `probe/${randomUUID()}`
  const put = (text: string, condition: object) => target.put(key, Buffer.from(text), { ...condition, signal })
  /** Undefined when the store kept the condition, or what it did instead. */
  const refused = async (text: string, condition: object) => {
    try {
      await put(text, condition)
    } catch (error) {
      if (error instanceof PreconditionFailed) return undefined
      throw error
    }
    return `it accepted ${JSON.stringify(condition)} and ignored it`
  }
  try {
    const { tag } = await put('first', { ifAbsent: true })
    const ignored =
      (await refused('second', { ifAbsent: true })) ?? (await refused('third', { ifMatch: '"0123456789abcdef0123456789abcdef"' }))
    if (ignored) return { cas: false, why: ignored }
    const next = await put('fourth', { ifMatch: tag })
    const stale = await refused('fifth', { ifMatch: tag })
    if (stale) return { cas: false, why: stale }
    const { body, tag: found } = await target.get(key, { signal })
    if (Buffer.from(body).toString() !== 'fourth' || found !== next.tag)
      return { cas: false, why: 'it did not keep what it had accepted' }
    return { cas: true }
  } catch (error) {
    if (error instanceof NotSupported || error instanceof PreconditionFailed) return { cas: false, why: messageOf(error) }
    throw error
  } finally {
    await target.delete([key])
  }
}
