// Checks what a client sent against a schema, as QEMU's input visitor does: member by member in the schema's order, the first thing
// that is wrong is the answer, and nothing has happened before (qapi/qobject-input-visitor.c, qapi-visit-core.c have the texts).

import type { z } from 'zod'
import { outOfRange } from '../base/checked.ts'
import { InvalidParameter } from '../base/errors.ts'
import { Float, isJsonObject, toPlain, type Json, type JsonObject } from './json.ts'
import { qapiTypeOf, type Builtin, type IntegerName, type ObjectType, type QapiType, type UnionType } from './qapi-type.ts'

/** @throws InvalidParameter with QEMU's text */
export function parseArguments<Schema extends z.ZodType>(schema: Schema, given: JsonObject): z.output<Schema> {
  const result = schema.safeParse(visit(qapiTypeOf(schema), given, []))
  if (result.success) return result.data
  const issue = result.error.issues[0]!
  const { code, message, path } = issue
  throw new InvalidParameter(code === 'custom' ? message : (outOfRange(issue) ?? `Parameter '${fullName(path)}': ${message}`))
}

type Path = readonly PropertyKey[]

/** The value in JavaScript's types, as the schema wants them. */
function visit(type: QapiType, value: Json, path: Path): unknown {
  switch (type.meta) {
    case 'builtin':
      return builtin(type.name, value, path)
    case 'integer':
      return integer(type.name, value, path)
    case 'enum': {
      if (typeof value !== 'string') throw wrongType(path, 'string')
      if (!type.values.includes(value))
        throw new InvalidParameter(`Parameter '${lastName(path)}' does not accept value '${value}'`)
      return value
    }
    case 'array': {
      if (!Array.isArray(value)) throw wrongType(path, 'array')
      return (value as readonly Json[]).map((element, index) => visit(type.element, element, [...path, index]))
    }
    case 'alternate': {
      const option = type.options.find(option => fits(option, value))
      if (!option) throw new InvalidParameter(`Invalid parameter type for '${lastName(path)}', expected: ${type.name}`)
      return visit(option, value, path)
    }
    case 'object':
      return object(type, objectOf(value, path), path)
    case 'union':
      return union(type, objectOf(value, path), path)
  }
}

function builtin(name: Builtin, value: Json, path: Path): unknown {
  switch (name) {
    case 'any':
      return toPlain(value)
    case 'null':
      if (value !== null) throw wrongType(path, 'null')
      return value
    case 'str':
      if (typeof value !== 'string') throw wrongType(path, 'string')
      return value
    case 'bool':
      if (typeof value !== 'boolean') throw wrongType(path, 'boolean')
      return value
    case 'number':
      if (!isNumber(value)) throw wrongType(path, 'number')
      return toPlain(value)
  }
}

const isNumber = (value: Json) => typeof value === 'number' || typeof value === 'bigint' || value instanceof Float

function integer(name: IntegerName, value: Json, path: Path): number {
  const bits = Number(name.replace(/\D+/, ''))
  const unsigned = name.startsWith('u')
  const isInteger = typeof value === 'number' || typeof value === 'bigint'
  if (unsigned && !isInteger) throw new InvalidParameter(`Parameter '${fullName(path)}' expects uint64`)
  // What is narrower is read as 64 bits first, and that is what a value beyond those is told.
  if (!isInteger || (!unsigned && value > 2n ** 63n - 1n)) throw wrongType(path, 'integer')
  // A negative number is taken for the unsigned one of the same bits.
  const wide = unsigned && value < 0 ? Number(2n ** 64n + BigInt(value)) : Number(value)
  if (bits < 64 && (unsigned ? wide >= 2 ** bits : wide < -(2 ** (bits - 1)) || wide >= 2 ** (bits - 1)))
    throw new InvalidParameter(`Parameter '${lastName(path)}' expects ${name}_t`)
  return wide
}

function objectOf(value: Json, path: Path): JsonObject {
  if (!isJsonObject(value)) throw wrongType(path, 'object')
  return value
}

function object({ members, others }: ObjectType, given: JsonObject, path: Path) {
  const result: Record<string, unknown> = Object.create(null) as Record<string, unknown>
  for (const { name, type, optional } of members) {
    const value = given[name]
    if (value === undefined) {
      if (!optional) throw missing([...path, name])
    } else result[name] = visit(type, value, [...path, name])
  }
  for (const [name, value] of Object.entries(given)) {
    if (name in result) continue
    if (!others) throw new InvalidParameter(`Parameter '${fullName([...path, name])}' is unexpected`)
    result[name] = visit(others, value, [...path, name])
  }
  return result
}

/** The tag is looked at first, since it says what the other members are. */
function union({ tag, variants, tagType }: UnionType, given: JsonObject, path: Path) {
  const value = given[tag]
  if (value === undefined) throw missing([...path, tag])
  const chosen = visit(tagType, value, [...path, tag]) as string
  return object(variants.get(chosen)!, given, path)
}

function fits(type: QapiType, value: Json): boolean {
  switch (type.meta) {
    case 'object':
    case 'union':
      return isJsonObject(value)
    case 'array':
      return Array.isArray(value)
    case 'enum':
      return typeof value === 'string'
    case 'integer':
      return isNumber(value)
    case 'alternate':
      return type.options.some(option => fits(option, value))
    case 'builtin':
      switch (type.name) {
        case 'str':
          return typeof value === 'string'
        case 'bool':
          return typeof value === 'boolean'
        case 'number':
          return isNumber(value)
        case 'null':
          return value === null
        case 'any':
          return true
      }
  }
}

const missing = (path: Path) => new InvalidParameter(`Parameter '${fullName(path)}' is missing`)

const wrongType = (path: Path, expected: string) =>
  new InvalidParameter(`Invalid parameter type for '${fullName(path)}', expected: ${expected}`)

/** As `options[0].file`. */
const fullName = (path: Path) =>
  path.map((part, index) => (typeof part === 'number' ? `[${part}]` : `${index > 0 ? '.' : ''}${String(part)}`)).join('')

/** Some of QEMU's texts know only the last name, and an element of a list has none. */
const lastName = (path: Path) => {
  const last = path.at(-1)
  return typeof last === 'string' ? last : 'null'
}
