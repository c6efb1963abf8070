// What a schema is in the terms of QEMU's interface language (docs/devel/qapi-code-gen): from it come the checks with QEMU's texts
// (arguments.ts) and what query-qmp-schema says (schema-info.ts).
//
// A command's arguments are zod schemas of this vocabulary: z.strictObject (its members are checked in the order written), z.string,
// z.boolean, z.enum, z.array, z.literal, z.null, z.unknown (QAPI's "any"), z.record, `.optional()`, `.default()`; integers as below;
// z.discriminatedUnion for a QAPI union; and z.union of types that differ in JSON for an alternate, `named` as QEMU names it, since its
// error text has the name. Refinements and transforms may stand anywhere; they run once all of that is right, and a refinement's message
// is the answer as it is.

import { z } from 'zod'

export type Builtin = 'str' | 'number' | 'bool' | 'null' | 'any'

export type IntegerName = 'int64' | 'uint64' | 'int32' | 'uint32' | 'int16' | 'uint16' | 'int8' | 'uint8'

export interface Member {
  readonly name: string
  readonly type: QapiType
  readonly optional: boolean
  readonly schema: z.core.$ZodType
}

export interface ObjectType {
  readonly meta: 'object'
  readonly members: readonly Member[]
  /** Members of other names are allowed, of this type. */
  readonly others?: QapiType | undefined
}

export interface UnionType {
  readonly meta: 'union'
  readonly tag: string
  /** By the value of the tag: the object with all its members, the tag among them. */
  readonly variants: ReadonlyMap<string, ObjectType>
  /** Of the tag: all its values. */
  readonly tagType: EnumType
}

export interface EnumType {
  readonly meta: 'enum'
  readonly values: readonly string[]
}

export type QapiType =
  | { readonly meta: 'builtin'; readonly name: Builtin }
  | { readonly meta: 'integer'; readonly name: IntegerName }
  | { readonly meta: 'array'; readonly element: QapiType }
  | { readonly meta: 'alternate'; readonly name: string; readonly options: readonly QapiType[] }
  | EnumType
  | ObjectType
  | UnionType

/** Gives an alternate the name that QEMU's texts have for it. */
export const named = <Schema extends z.ZodType>(name: string, schema: Schema): Schema => schema.meta({ qapi: name })

/** Marks the members that every variant of a union has, for a union that has one variant only as yet. */
export const ofEveryVariant = <Shape extends Record<string, z.ZodType>>(shape: Shape): Shape =>
  Object.fromEntries(Object.entries(shape).map(([name, member]) => [name, member.meta({ ofEveryVariant: true })])) as Shape

export const isOfEveryVariant = (schema: z.core.$ZodType) => z.globalRegistry.get(schema)?.['ofEveryVariant'] === true

/** Integers of 64 bits. Beyond 2^53 the number is only near: whoever needs it exact refuses what is no safe integer. */
export const int64 = z.number().meta({ qapi: 'int64' })
export const uint64 = z.number().meta({ qapi: 'uint64' })
export const uint32 = z.number().meta({ qapi: 'uint32' })
export const uint16 = z.number().meta({ qapi: 'uint16' })

const known = new WeakMap<z.core.$ZodType, QapiType>()

/** The same object for the same schema, so that a schema that contains itself comes to an end. */
export function qapiTypeOf(wrapped: z.core.$ZodType): QapiType {
  const schema = unwrap(wrapped)
  const before = known.get(schema)
  if (before) return before
  // Whoever is within itself finds this, which is filled in by then.
  const type = {} as QapiType
  known.set(schema, type)
  return Object.assign(type, read(schema))
}

/** As zod's own declarations: a schema of any kind, told apart by `def.type`. */
const defOf = (schema: z.core.$ZodType) => (schema as z.core.$ZodTypes)._zod.def

/** Without what says only whether a value must be there, or what becomes of it once it has been checked. */
function unwrap(schema: z.core.$ZodType): z.core.$ZodType {
  const def = defOf(schema)
  switch (def.type) {
    case 'optional':
    case 'default':
    case 'prefault':
    case 'nonoptional':
    case 'readonly':
      return unwrap(def.innerType)
    case 'pipe':
      return unwrap(def.in)
    case 'lazy':
      // Not def.getter(), which may make a new schema each time.
      return unwrap((schema as z.core.$ZodLazy)._zod.innerType)
    default:
      return schema
  }
}

function read(schema: z.core.$ZodType): QapiType {
  const def = defOf(schema)
  switch (def.type) {
    case 'string':
      return { meta: 'builtin', name: 'str' }
    case 'boolean':
      return { meta: 'builtin', name: 'bool' }
    case 'null':
      return { meta: 'builtin', name: 'null' }
    case 'any':
    case 'unknown':
      return { meta: 'builtin', name: 'any' }
    case 'number':
      return number(schema, def)
    case 'enum':
      return { meta: 'enum', values: Object.values(def.entries).map(String) }
    case 'literal':
      return { meta: 'enum', values: def.values.map(String) }
    case 'array':
      return { meta: 'array', element: qapiTypeOf(def.element) }
    case 'object':
      return object(def)
    case 'record':
      return { meta: 'object', members: [], others: qapiTypeOf(def.valueType) }
    case 'union':
      return 'discriminator' in def ? union(def as z.core.$ZodDiscriminatedUnionDef) : alternate(schema, def.options)
    case 'nullable':
      return alternate(schema, [def.innerType, z.null()])
    default:
      throw new TypeError(`QAPI has nothing like zod's ${def.type}`)
  }
}

function number(schema: z.core.$ZodType, def: z.core.$ZodNumberDef): QapiType {
  const name = nameOf(schema) ?? ('format' in def ? String(def.format) : undefined)
  if (name === undefined) return { meta: 'builtin', name: 'number' }
  return { meta: 'integer', name: name === 'safeint' ? 'int64' : (name as IntegerName) }
}

const nameOf = (schema: z.core.$ZodType) => z.globalRegistry.get(schema)?.['qapi'] as string | undefined

function object({ shape, catchall }: z.core.$ZodObjectDef): ObjectType {
  const members = Object.entries(shape).map(([name, member]) => ({
    name,
    type: qapiTypeOf(member),
    optional: member._zod.optin !== undefined,
    schema: member,
  }))
  const isClosed = !catchall || catchall._zod.def.type === 'never'
  return { meta: 'object', members, ...(!isClosed && { others: qapiTypeOf(catchall) }) }
}

function union({ discriminator: tag, options }: z.core.$ZodDiscriminatedUnionDef): UnionType {
  const variants = options.flatMap(option => {
    const type = qapiTypeOf(option) as ObjectType
    const { values } = type.members.find(({ name }) => name === tag)!.type as EnumType
    return values.map(value => [value, type] as const)
  })
  return { meta: 'union', tag, variants: new Map(variants), tagType: { meta: 'enum', values: variants.map(([value]) => value) } }
}

function alternate(schema: z.core.$ZodType, options: readonly z.core.$ZodType[]): QapiType {
  const types = options.map(qapiTypeOf)
  if (types.every(({ meta }) => meta === 'enum')) {
    return { meta: 'enum', values: types.flatMap(type => (type as EnumType).values) }
  }
  const name = nameOf(schema)
  if (name === undefined) throw new TypeError('an alternate needs a name: named(NAME, z.union(...))')
  return { meta: 'alternate', name, options: types }
}
