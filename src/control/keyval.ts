// Options as QEMU's command line writes them: `key=value,list.0=value,inner.key=value` (util/keyval.c), or a JSON object.
//
// Such a text has no types: `keyvalToJson` gives each value the type that a schema wants there, by the rules and in the words of QEMU's
// keyval visitor (qapi/qobject-input-visitor.c), and leaves what does not fit to be refused by the check that follows (arguments.ts).

import { InvalidParameter } from '../base/errors.ts'
import { Float, isJsonObject, type Json, type JsonObject } from './json.ts'
import { JsonStream } from './json-stream.ts'
import type { ObjectType, QapiType } from './qapi-type.ts'

const MAX_KEY = 127
/** A name of QAPI, or the index of a list's element. */
const FRAGMENT = /^(?:\d+|(?:__[a-z0-9.-]+_)?[A-Za-z][A-Za-z0-9_-]*)$/
const INDEX = /^\d+$/

/** Strings, lists of them and objects of them. */
type Tree = { [key: string]: Tree | string }

const emptyTree = () => Object.create(null) as Tree

/**
 * What an option of the command line says. `impliedKey` names the first value where it has no key of its own.
 * @throws InvalidParameter in QEMU's words
 */
export function parseOption(text: string, type: QapiType, impliedKey?: string): JsonObject {
  if (!text.startsWith('{')) return keyvalToJson(type, parseKeyval(text, impliedKey), []) as JsonObject
  const stream = new JsonStream()
  const items = [...stream.feed(Buffer.from(text)), ...stream.feed(Buffer.from('\n'))]
  const [item] = items
  if (!item) throw new InvalidParameter('JSON parse error, premature EOI')
  if ('error' in item) throw new InvalidParameter(item.error)
  if (items.length > 1) throw new InvalidParameter('Expecting at most one JSON value')
  return item.value as JsonObject // it begins with a brace
}

/** @throws InvalidParameter */
export function parseKeyval(text: string, impliedKey?: string): JsonObject {
  const tree = emptyTree()
  let rest = text
  let implied = impliedKey
  while (rest !== '') {
    const [key, value, after] = nextPair(rest, implied)
    place(tree, key, value)
    rest = after
    implied = undefined
  }
  return listsOf(tree, '') as JsonObject
}

/** The first pair, and what is left behind its comma. */
function nextPair(text: string, implied: string | undefined): [key: string, value: string, rest: string] {
  const end = text.search(/[=,]|$/)
  const name = text.slice(0, end)
  if (text[end] !== '=') {
    // A value for the implied key ends at the comma; it cannot hold one.
    if (implied === undefined) throw new InvalidParameter(`Expected '=' after parameter '${name}'`)
    return [implied, name, text.slice(end + 1)]
  }
  let value = ''
  let at = end + 1
  for (; at < text.length; at++) {
    if (text[at] === ',' && text[++at] !== ',') break
    value += text[at]
  }
  return [name, value, text.slice(at)]
}

function place(tree: Tree, key: string, value: string) {
  const path = key.split('.')
  if (!path.every(fragment => FRAGMENT.test(fragment))) throw new InvalidParameter(`Invalid parameter '${key}'`)
  const long = path.find(fragment => fragment.length > MAX_KEY)
  if (long !== undefined) throw new InvalidParameter(`Parameter name '${long}' is too long`)
  let inner = tree
  for (const [index, fragment] of path.entries()) {
    const here = inner[fragment]
    const isLast = index === path.length - 1
    if (here !== undefined && (typeof here === 'string') !== isLast)
      throw new InvalidParameter(`Parameters '${path.slice(0, index + 1).join('.')}.*' used inconsistently`)
    if (isLast) inner[fragment] = value
    else inner = (inner[fragment] ??= emptyTree()) as Tree
  }
}

/** An object whose keys are all indices is a list. */
function listsOf(tree: Tree, path: string): Json {
  const keys = Object.keys(tree)
  const member = (key: string): Json => {
    const value = tree[key]!
    return typeof value === 'string' ? value : listsOf(value, `${path}${key}.`)
  }
  const indices = keys.filter(key => INDEX.test(key))
  if (indices.length === 0 || path === '')
    return Object.assign(Object.create(null), Object.fromEntries(keys.map(key => [key, member(key)]))) as JsonObject
  if (indices.length < keys.length) throw new InvalidParameter(`Parameters '${path}*' used inconsistently`)
  const missing = keys.findIndex((_, index) => tree[index] === undefined)
  if (missing >= 0) throw new InvalidParameter(`Parameter '${path}${missing}' missing`)
  return keys.map((_, index) => member(String(index)))
}

/** The same value with the types of the schema. What does not fit stays as it is. */
export function keyvalToJson(type: QapiType, value: Json, path: readonly string[]): Json {
  if (Array.isArray(value)) {
    if (type.meta !== 'array') return value as Json
    return (value as readonly Json[]).map((element, index) => keyvalToJson(type.element, element, [...path, String(index)]))
  }
  if (isJsonObject(value)) return objectToJson(type, value, path)
  return typeof value === 'string' ? scalarToJson(type, value, path) : value
}

function objectToJson(type: QapiType, value: JsonObject, path: readonly string[]): Json {
  const inner = objectTypeOf(type, value)
  if (inner && inner.meta !== 'object') return objectToJson(inner, value, path)
  const members = Object.entries(value).map(([name, member]) => {
    const memberType = inner?.members.find(known => known.name === name)?.type ?? inner?.others
    return [name, memberType ? keyvalToJson(memberType, member, [...path, name]) : member]
  })
  return Object.assign(Object.create(null), Object.fromEntries(members)) as JsonObject
}

/** The type whose members these are; undefined where no object is wanted, or none of this tag. */
function objectTypeOf(type: QapiType, value: JsonObject): ObjectType | QapiType | undefined {
  switch (type.meta) {
    case 'object':
      return type
    case 'union': {
      const tag = value[type.tag]
      return typeof tag === 'string' ? type.variants.get(tag) : undefined
    }
    case 'alternate':
      return type.options.find(option => option.meta === 'object' || option.meta === 'union')
    default:
      return undefined
  }
}

function scalarToJson(type: QapiType, text: string, path: readonly string[]): Json {
  if (type.meta === 'integer') return integerOf(text, path)
  if (type.meta !== 'builtin') return text
  if (type.name === 'bool') return boolOf(text, path)
  return type.name === 'number' ? numberOf(text, path) : text
}

const TRUE = new Set(['on', 'yes', 'true', 'y'])
const FALSE = new Set(['off', 'no', 'false', 'n'])

function boolOf(text: string, path: readonly string[]): boolean {
  if (TRUE.has(text)) return true
  if (FALSE.has(text)) return false
  throw new InvalidParameter(`Parameter '${path.join('.')}' expects 'on' or 'off'`)
}

/** As strtoll with base 0. */
function integerOf(text: string, path: readonly string[]): number | bigint {
  const [, sign, digits] = /^\s*([+-]?)(0[xX][\da-fA-F]+|0[0-7]*|[1-9]\d*)$/.exec(text) ?? []
  if (digits === undefined) throw new InvalidParameter(`Parameter '${path.join('.')}' expects integer`)
  const octal = /^0[0-7]+$/.test(digits)
  const value = BigInt(octal ? `0o${digits.slice(1)}` : digits) * (sign === '-' ? -1n : 1n)
  return Number.isSafeInteger(Number(value)) ? Number(value) : value
}

function numberOf(text: string, path: readonly string[]): Float {
  const value = Number(text)
  if (text.trim() === '' || !Number.isFinite(value)) throw new InvalidParameter(`Parameter '${path.join('.')}' expects number`)
  return new Float(value)
}
