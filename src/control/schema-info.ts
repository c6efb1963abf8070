// What query-qmp-schema says: QMP's SchemaInfo (QEMU's qapi/introspect.json), made of the schemas of the commands and events.
//
// Commands and events come first, then every type that they use, in the order in which it is first used; what is no command, event or
// built-in type has a number for its name, since such names are nobody's business. libvirt and the like go by the members of types and
// the cases of unions to find out what there is.

import { z } from 'zod'
import type { AnyCommand } from './command.ts'
import type { EventType } from './event-types.ts'
import {
  isOfEveryVariant,
  qapiTypeOf,
  type Builtin,
  type Member,
  type ObjectType,
  type QapiType,
  type UnionType,
} from './qapi-type.ts'

export const metaTypes = ['builtin', 'enum', 'array', 'object', 'alternate', 'command', 'event'] as const

export interface SchemaInfo {
  readonly name: string
  readonly 'meta-type': (typeof metaTypes)[number]
  readonly [member: string]: unknown
}

const jsonTypes: Record<Builtin | 'int', string> = {
  str: 'string',
  int: 'int',
  number: 'number',
  bool: 'boolean',
  null: 'null',
  any: 'value',
}

const NOTHING = z.strictObject({})

/** The same for the same commands and events, in the same order. */
export function schemaInfo(commands: readonly AnyCommand[], events: readonly EventType[]): SchemaInfo[] {
  const types = new Types()
  const named: SchemaInfo[] = [
    ...commands.map(({ name, arguments: args, returns, features }) => ({
      name,
      'meta-type': 'command' as const,
      'arg-type': types.nameOf(qapiTypeOf(args)),
      'ret-type': types.nameOf(qapiTypeOf(returns ?? NOTHING)),
      features,
    })),
    ...events.map(({ name, data }) => ({
      name,
      'meta-type': 'event' as const,
      'arg-type': types.nameOf(qapiTypeOf(data)),
    })),
  ]
  return [...named, ...types.describe()]
}

/** Names types as they are met, and describes those that have a name. */
class Types {
  /** By the type; types that are the same without being one object (built-in ones, arrays, empty objects) have a text instead. */
  readonly #names = new Map<QapiType | string, string>()
  /** A set also while it is iterated over: a type's description may name more. */
  readonly #order = new Map<string, QapiType>()
  #last = -1

  nameOf(type: QapiType): string {
    const key = keyOf(type, element => this.nameOf(element))
    const before = this.#names.get(key)
    if (before !== undefined) return before
    const name = typeof key === 'string' && key !== EMPTY ? key : String(++this.#last)
    this.#names.set(key, name)
    this.#order.set(name, type)
    return name
  }

  describe(): SchemaInfo[] {
    return this.#order
      .entries()
      .map(([name, type]): SchemaInfo => ({ name, ...this.#describe(type) }))
      .toArray()
  }

  #describe(type: QapiType): Omit<SchemaInfo, 'name'> & Pick<SchemaInfo, 'meta-type'> {
    switch (type.meta) {
      case 'builtin':
        return { 'meta-type': 'builtin', 'json-type': jsonTypes[type.name] }
      case 'integer':
        return { 'meta-type': 'builtin', 'json-type': jsonTypes.int }
      case 'enum':
        return { 'meta-type': 'enum', members: type.values.map(name => ({ name })), values: type.values }
      case 'array':
        return { 'meta-type': 'array', 'element-type': this.nameOf(type.element) }
      case 'alternate':
        return { 'meta-type': 'alternate', members: type.options.map(option => ({ type: this.nameOf(option) })) }
      case 'object':
        return isAnything(type)
          ? { 'meta-type': 'builtin', 'json-type': jsonTypes.any }
          : { 'meta-type': 'object', members: this.#members(type.members) }
      case 'union':
        return this.#union(type)
    }
  }

  #members(members: readonly Member[]) {
    return members.map(({ name, type, optional, schema }) => ({
      name,
      type: this.nameOf(type),
      ...(optional && { default: null }),
      features: z.globalRegistry.get(schema)?.['features'],
    }))
  }

  #union({ tag, tagType, variants }: UnionType): Omit<SchemaInfo, 'name'> & Pick<SchemaInfo, 'meta-type'> {
    const common = commonMembers([...variants.values()], tag)
    const isOwn = ({ name }: Member) => name !== tag && !common.some(member => member.name === name)
    // Several values may have one variant.
    const own = new Map<ObjectType, ObjectType>()
    for (const variant of variants.values()) {
      const { members, others } = variant
      if (!own.has(variant)) own.set(variant, { meta: 'object', members: members.filter(isOwn), others })
    }
    return {
      'meta-type': 'object',
      members: [{ name: tag, type: this.nameOf(tagType) }, ...this.#members(common)],
      tag,
      variants: [...variants].map(([value, variant]) => ({ case: value, type: this.nameOf(own.get(variant)!) })),
    }
  }
}

const EMPTY = '{}'

/** What names a type: itself, or a text for those that any schema may make anew. */
function keyOf(type: QapiType, nameOf: (type: QapiType) => string): QapiType | string {
  switch (type.meta) {
    case 'builtin':
      return type.name
    case 'integer':
      return 'int'
    case 'array':
      return `[${nameOf(type.element)}]`
    case 'object':
      if (isAnything(type)) return 'any'
      return type.members.length === 0 ? EMPTY : type
    default:
      return type
  }
}

/** QAPI has no objects whose members have any name. */
const isAnything = ({ members, others }: ObjectType) => members.length === 0 && others !== undefined

/** Those that every variant has from the same place: the schema is one object. Where there is one variant only, it says which they are. */
function commonMembers(variants: readonly ObjectType[], tag: string): readonly Member[] {
  const [first, ...others] = new Set(variants)
  if (!first) return []
  if (others.length === 0) return first.members.filter(({ name, schema }) => name !== tag && isOfEveryVariant(schema))
  return first.members.filter(
    ({ name, schema }) => name !== tag && others.every(({ members }) => members.some(member => member.schema === schema)),
  )
}
