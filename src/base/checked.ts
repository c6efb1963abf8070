// Arguments checked against their schema; what is wrong with them in QEMU's words (qapi/qobject-input-visitor.c).

import type { z } from 'zod'
import { InvalidParameter } from './errors.ts'

/** The arguments as the schema makes them. @throws InvalidParameter for the first thing that is wrong */
export function checked<T>(schema: z.ZodType<T>, input: unknown): T {
  const result = schema.safeParse(input, { reportInput: true })
  if (result.success) return result.data
  throw new InvalidParameter(sentenceOf(result.error.issues[0]!))
}

function sentenceOf(issue: z.core.$ZodIssue): string {
  const name = nameOf(issue.path)
  if (issue.code === 'unrecognized_keys') return `Parameter '${nameOf([...issue.path, issue.keys[0]!])}' is unexpected`
  if (issue.input === undefined && issue.code !== 'custom') return `Parameter '${name}' is missing`
  if (issue.code === 'invalid_type')
    return `Invalid parameter type for '${name}', expected: ${expected[issue.expected] ?? issue.expected}`
  if (issue.code === 'invalid_value') {
    return typeof issue.input === 'string'
      ? `Parameter '${name}' does not accept value '${issue.input}'`
      : `Invalid parameter type for '${name}', expected: string`
  }
  return issue.code === 'custom' ? issue.message : (outOfRange(issue) ?? `Parameter '${name}': ${issue.message}`)
}

/** What a number is told that is no size or count, by its own name as QEMU's options have it (util/qemu-option.c). */
export function outOfRange(issue: z.core.$ZodIssue): string | undefined {
  const name = String(issue.path.at(-1))
  if (issue.code === 'too_small' && ['number', 'int'].includes(issue.origin) && issue.minimum === 0)
    return `Parameter '${name}' expects a non-negative number below 2^64`
  if (issue.code === 'too_big' && ['number', 'int'].includes(issue.origin) && issue.maximum === Number.MAX_SAFE_INTEGER)
    return `Parameter '${name}' is more than ${Number.MAX_SAFE_INTEGER}, the most that this daemon takes`
  return undefined
}

/** options[0].file.filename */
const nameOf = (path: readonly PropertyKey[]) =>
  path.map((key, index) => (typeof key === 'number' ? `[${key}]` : `${index > 0 ? '.' : ''}${String(key)}`)).join('')

const expected: Record<string, string> = { int: 'integer', number: 'integer', record: 'object' }
