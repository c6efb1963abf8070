// Binary records as tables: the fields in wire order, big-endian and without padding, with the size the specification states.
//
//     const request = struct('request', 28, { magic: u32, flags: u16, type: u16, cookie: u64, offset: u64, length: u32 })
//     request.encode({ magic, flags, type, cookie, offset, length }, buffer, at) // writes 28 bytes at `at`, allocates nothing
//     const { cookie } = request.decode(buffer, at)                              // reads 28 bytes at `at`, copies nothing
//
// A table that does not add up to its stated size fails as it loads. Buffers that are too short throw a RangeError, as Buffer's own
// methods do; what a value means, and whether it is acceptable, is the caller's business.

/** How one field is read and written. */
export interface Field<T> {
  readonly bytes: number
  read(from: Buffer, at: number): T
  write(into: Buffer, at: number, value: T): void
}

export const u8: Field<number> = {
  bytes: 1,
  read: (from, at) => from.readUInt8(at),
  write: (into, at, value) => into.writeUInt8(value, at),
}

export const u16: Field<number> = {
  bytes: 2,
  read: (from, at) => from.readUInt16BE(at),
  write: (into, at, value) => into.writeUInt16BE(value, at),
}

export const u32: Field<number> = {
  bytes: 4,
  read: (from, at) => from.readUInt32BE(at),
  write: (into, at, value) => into.writeUInt32BE(value, at),
}

/** All 64 bits: cookies, bit sets, and numbers from a peer that must be judged whatever they are. */
export const u64: Field<bigint> = {
  bytes: 8,
  read: (from, at) => from.readBigUInt64BE(at),
  write: (into, at, value) => into.writeBigUInt64BE(value, at),
}

/** 64 bits as a number, exactly: RangeError for what is 2^53 or more, in either direction. */
export const offset: Field<number> = {
  bytes: 8,
  read(from, at) {
    const high = from.readUInt32BE(at)
    const low = from.readUInt32BE(at + 4)
    if (high > 0x1f_ffff) throw new RangeError(`${from.readBigUInt64BE(at)} is 2^53 or more, and would not be exact`)
    return high * 2 ** 32 + low
  },
  write(into, at, value) {
    if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`${value} is not a whole number between 0 and 2^53`)
    into.writeUInt32BE(Math.floor(value / 2 ** 32), at)
    into.writeUInt32BE(value % 2 ** 32, at + 4)
  },
}

type Fields = Readonly<Record<string, Field<number> | Field<bigint>>>

/** The object a table's bytes become. */
export type Values<Table> = { -readonly [Name in keyof Table]: Table[Name] extends Field<infer T> ? T : never }

/** The object's type, from the table: `ValuesOf<typeof request>`. */
export type ValuesOf<S> = S extends Struct<infer Table> ? Values<Table> : never

export interface Struct<Table> {
  readonly name: string
  /** Bytes. */
  readonly size: number
  /** Where each field begins, for who wants only one of them, or must be fast. */
  readonly at: Readonly<Record<keyof Table, number>>
  decode(from: Buffer, at?: number): Values<Table>
  /** Writes at `at`, and says where the record ends. */
  encode(values: Readonly<Values<Table>>, into: Buffer, at?: number): number
  /** A new buffer that holds just this. */
  bytes(values: Readonly<Values<Table>>): Buffer<ArrayBuffer>
}

/** Declares a record. `size` is the number in the specification; the fields must add up to it. */
export function struct<const Table extends Fields>(name: string, size: number, table: Table): Struct<Table> {
  const fields = Object.entries(table) as unknown as [name: keyof Table, field: Field<unknown>][]
  const at = {} as Record<keyof Table, number>
  let end = 0
  for (const [key, field] of fields) {
    at[key] = end
    end += field.bytes
  }
  if (end !== size) throw new RangeError(`${name}: the fields are ${end} bytes, and should be ${size}`)
  const steps = fields.map(([key, field]) => ({ key, field, at: at[key] }))

  function decode(from: Buffer, start = 0) {
    const values = {} as Record<keyof Table, unknown>
    for (const step of steps) values[step.key] = step.field.read(from, start + step.at)
    return values as Values<Table>
  }
  function encode(values: Readonly<Values<Table>>, into: Buffer, start = 0) {
    for (const step of steps) step.field.write(into, start + step.at, values[step.key])
    return start + size
  }
  function bytes(values: Readonly<Values<Table>>) {
    const into = Buffer.allocUnsafe(size)
    encode(values, into)
    return into
  }
  return { name, size, at, decode, encode, bytes }
}
