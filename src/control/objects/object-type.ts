// A kind of object that object-add makes: what nodes and servers refer to by id, and what is no node.

import type { z } from 'zod'
import type { Objects } from '../../block/objects.ts'
import type { Json } from '../json.ts'

export interface ObjectType<Shape extends z.ZodRawShape = z.ZodRawShape> {
  /** QMP's qom-type. */
  readonly name: string
  readonly properties: Shape
  /** How the object model (qom-list) calls the types of properties that are no strings, numbers or booleans. */
  readonly propertyTypes?: Readonly<Record<string, string>>
  /** What properties are that object-add was not given. */
  readonly defaults?: Readonly<Record<string, unknown>>
  /** Properties as they are now, where they may have changed since. */
  current?(this: void, value: unknown): Readonly<Record<string, unknown>>
  /** What qom-set may change. @throws InvalidParameter */
  readonly set?: Readonly<Record<string, (object: unknown, wanted: Json, properties: Record<string, unknown>) => void>>
  /** What others find by the id. @throws a Fault in QEMU's words */
  create(this: void, properties: z.output<z.ZodObject<Shape>>, objects: Objects): unknown
}

/** Any of them, for arrays. */
// oxlint-disable-next-line no-explicit-any -- the properties are each type's own
export type AnyObjectType = Omit<ObjectType, 'create'> & { create(this: void, properties: any, objects: Objects): unknown }

/** Only to have the types of the properties worked out. */
export const objectType = <Shape extends z.ZodRawShape>(type: ObjectType<Shape>) => type
