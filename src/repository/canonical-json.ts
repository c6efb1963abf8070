// JSON in exactly one way: keys sorted, no spaces, so that equal values are equal bytes. And JSON that others wrote, checked.

import type { z } from 'zod'
import { messageOf } from '../base/errors.ts'
import { Damaged } from './faults.ts'

export const canonicalJson = (value: unknown): Buffer => Buffer.from(JSON.stringify(sorted(value)))

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted)
  if (typeof value !== 'object' || value === null) return value
  const entries = Object.entries(value).filter(([, inner]) => inner !== undefined)
  return Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, inner]) => [key, sorted(inner)]))
}

/** `what` names the object in the message. */
export function parseJson<T>(bytes: Uint8Array, schema: z.ZodType<T>, what: string): T {
  let value: unknown
  try {
    value = JSON.parse(Buffer.from(bytes).toString('utf8'))
  } catch (error) {
    throw new Damaged(`${what} is no JSON: ${messageOf(error)}`, { cause: error })
  }
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const [issue] = result.error.issues
  throw new Damaged(`${what} is not as it should be: ${issue!.path.join('.') || 'all of it'}: ${issue!.message}`)
}
