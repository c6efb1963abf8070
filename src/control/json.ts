// The values of a QMP conversation, and how they are written.
//
// JavaScript's numbers cannot hold what QMP's can: an integer of 64 bits, and the difference between 1 and 1.0, which is no integer
// to QEMU. So integers are numbers where those are exact and bigints where not, and any other number is a Float until a schema has
// said what it is to be. Objects have no prototype, so that no name in them means anything.

export type Json = null | boolean | number | bigint | string | Float | readonly Json[] | JsonObject

export interface JsonObject {
  readonly [member: string]: Json
}

/** A number that was written with a fraction or an exponent, or is too large for an integer of 64 bits. */
export class Float {
  constructor(readonly value: number) {}
}

export const isJsonObject = (value: Json | undefined): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Float)

/** The same in JavaScript's own types, for what no schema describes; integers beyond 2^53 lose their last digits. */
export function toPlain(value: Json): unknown {
  if (typeof value === 'bigint') return Number(value)
  if (value instanceof Float) return value.value
  if (Array.isArray(value)) return (value as readonly Json[]).map(toPlain)
  if (isJsonObject(value)) return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, toPlain(member)]))
  return value
}

/**
 * One line of JSON in ASCII, with QEMU's spaces, without its end. Takes JavaScript's values and those above; a member that is
 * undefined is left out, and an object says by `toJSON` what stands for it, as with JSON.stringify.
 */
export function toText(value: unknown): string {
  switch (typeof value) {
    case 'string':
      return quote(value)
    case 'number':
      return Number.isInteger(value) ? integer(value) : fraction(value)
    case 'bigint':
    case 'boolean':
      return String(value)
    case 'object':
      break
    default:
      throw new TypeError(`a ${typeof value} cannot be written as JSON`)
  }
  if (value === null) return 'null'
  if (value instanceof Float) return fraction(value.value)
  if (Array.isArray(value)) return `[${value.map(toText).join(', ')}]`
  if ('toJSON' in value && typeof value.toJSON === 'function') return toText((value as { toJSON(): unknown }).toJSON())
  const members = Object.entries(value)
    .filter(([, member]) => member !== undefined)
    .map(([name, member]) => `${quote(name)}: ${toText(member)}`)
  return `{${members.join(', ')}}`
}

/** A text of `toText` with a line for each value, as QEMU's pretty monitors print it. */
export function indented(text: string): string {
  let depth = 0
  const line = () => `\r\n${'    '.repeat(depth)}`
  return text.replaceAll(/"(?:[^"\\]|\\.)*"|\{\}|\[\]|[{[]|[}\]]|, |[^"{}[\],]+/g, token => {
    if (token === '{}' || token === '[]') return `${token[0]}${line()}${token[1]}`
    if (token === '{' || token === '[') {
      depth++
      return `${token}${line()}`
    }
    if (token === '}' || token === ']') {
      depth--
      return `${line()}${token}`
    }
    return token === ', ' ? `,${line()}` : token
  })
}

/** All digits of an integer, where String() would begin to use an exponent. */
const integer = (value: number) => (Math.abs(value) < 1e21 ? String(value === 0 ? 0 : value) : fraction(value))

/** JSON has no infinity and no NaN. */
const fraction = (value: number) => (Number.isFinite(value) ? String(value) : 'null')

const quote = (text: string) =>
  JSON.stringify(text).replaceAll(
    // oxlint-disable-next-line no-control-regex -- everything that is not printable ASCII
    /[^\x00-\x7e]/g,
    unit => `\\u${unit.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}`,
  )

/** Text that is no JSON; the message is QEMU's. */
export class JsonError extends Error {}
