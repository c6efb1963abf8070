// QEMU's object model, as far as there is something in it here: the objects that object-add has made, under /objects, and their properties.

import { InvalidParameter, NotFound } from '../../base/errors.ts'
import { isWellFormed } from '../../block/node-options.ts'
import type { Objects } from '../../block/objects.ts'
import type { Json } from '../json.ts'
import { qapiTypeOf } from '../qapi-type.ts'
import { objectTypes } from './index.ts'
import type { AnyObjectType } from './object-type.ts'

export interface Property {
  readonly name: string
  readonly type: string
}

interface Found {
  readonly typename: string
  readonly properties: readonly Property[]
  get(name: string): unknown
  set(name: string, wanted: Json): void
}

const TYPE: Property = { name: 'type', type: 'string' }
/** Never told: whoever has made the secret knows it. */
const SECRET = 'data'

/** By its whole path, or the end of it. @throws NotFound, InvalidParameter, in QEMU's words */
export function resolvePath(objects: Objects, path: string): Found {
  if (path === '') throw new InvalidParameter("Path '' is ambiguous")
  const named = [...objects.entries()].filter(([id]) => isWellFormed(id)) // our own have ids that are none
  const parts = path.split('/').filter(part => part !== '')
  const ids = named.map(([id, { type }]) => ({ name: id, type: `child<${type}>` }))
  if (parts.length === 0) return container(ids.length > 0 ? [{ name: 'objects', type: 'child<container>' }] : [])
  const inside = parts[0] === 'objects' ? parts.slice(1) : path.startsWith('/') ? undefined : parts
  if (inside?.length === 0 && ids.length > 0) return container(ids)
  const entry = inside?.length === 1 ? named.find(([id]) => id === inside[0]) : undefined
  if (!entry) throw new DeviceNotFound(`Device '${path}' not found`)
  const [, { type, value, properties }] = entry
  return objectOf(
    objectTypes.find(({ name }) => name === type)!,
    value,
    properties,
  )
}

/** @throws NotFound */
export function propertiesOf(typename: string): readonly Property[] {
  const type = objectTypes.find(({ name }) => qomName(name) === typename)
  if (!type) throw new DeviceNotFound(`Class '${typename}' not found`)
  return describe(type)
}

export const qomTypes = () =>
  objectTypes.map(({ name }) => ({ name: qomName(name), parent: PARENTS.find(([kind]) => kind.test(name))![1] }))

class DeviceNotFound extends NotFound {
  override readonly qmpClass = 'DeviceNotFound'
}

const PARENTS: readonly (readonly [RegExp, string])[] = [
  [/^authz-/, 'authz'],
  [/^iothread$/, 'event-loop-base'],
  [/^secret$/, 'secret_common'],
  [/^tls-creds-/, 'tls-creds'],
  [/^/, 'object'],
]

/** One has another name in object-add. */
const qomName = (name: string) => (name === 'authz-listfile' ? 'authz-list-file' : name)

const describe = ({ properties, propertyTypes = {} }: AnyObjectType): Property[] => [
  TYPE,
  ...Object.entries(properties).map(([name, schema]) => ({ name, type: propertyTypes[name] ?? typeOf(schema) })),
]

function typeOf(schema: AnyObjectType['properties'][string]) {
  const type = qapiTypeOf(schema)
  if (type.meta === 'integer') return 'int'
  return type.meta === 'builtin' && type.name === 'bool' ? 'bool' : 'string'
}

const notFound = (typename: string, name: string) => new InvalidParameter(`Property '${typename}.${name}' not found`)
const notWritable = (typename: string, name: string) => new InvalidParameter(`Property '${typename}.${name}' is not writable`)

function container(children: readonly Property[]): Found {
  return {
    typename: 'container',
    properties: [TYPE, ...children],
    get(name) {
      if (name === TYPE.name) return 'container'
      const child = children.find(child => child.name === name)
      if (!child) throw notFound('container', name)
      return `/objects/${name}`
    },
    set(name) {
      throw name === TYPE.name ? notWritable('container', name) : notFound('container', name)
    },
  }
}

function objectOf(type: AnyObjectType, value: unknown, given: Record<string, unknown>): Found {
  const typename = qomName(type.name)
  const properties = describe(type)
  const check = (name: string) => {
    if (!properties.some(property => property.name === name)) throw notFound(typename, name)
  }
  return {
    typename,
    properties,
    get(name) {
      check(name)
      if (name === TYPE.name) return typename
      if (type.name === 'secret' && name === SECRET)
        throw new InvalidParameter(`Property '${typename}.${name}' is not readable: secrets are not told`)
      const values = { ...type.defaults, ...given, ...type.current?.(value) }
      return values[name] ?? ''
    },
    set(name, wanted) {
      check(name)
      const set = type.set?.[name]
      if (!set) throw notWritable(typename, name)
      set(value, wanted, given)
    },
  }
}
