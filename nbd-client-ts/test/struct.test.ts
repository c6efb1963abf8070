// The record codec, and the tables of the protocol that are made with it.

import fc from './property.ts'
import t from 'tap'
import * as protocol from '../src/protocol.ts'
import { offset, struct, u16, u32, u64, u8 } from '../src/struct.ts'

const bytes = (value: bigint) => struct('64 bits', 8, { value: u64 }).bytes({ value })
const text = (number: bigint) => Buffer.from(number.toString(16), 'hex').toString('latin1')
const all = struct('all', 23, { a: u8, b: u16, c: u32, d: u64, e: offset })

t.test('a record is in wire order, big-endian and without padding', async t => {
  const record = all.bytes({ a: 1, b: 0x0203, c: 0x0405_0607, d: 0x0809_0a0b_0c0d_0e0fn, e: 0x0010_1112_1314_1516 })
  t.equal(record.toString('hex'), '0102030405060708090a0b0c0d0e0f0010111213141516')
  t.same(all.at, { a: 0, b: 1, c: 3, d: 7, e: 15 })
})

t.test('what is encoded at any place of a buffer is decoded there, and nothing around it is touched', async t => {
  const values = fc.record({
    a: fc.integer({ min: 0, max: 0xff }),
    b: fc.integer({ min: 0, max: 0xffff }),
    c: fc.integer({ min: 0, max: 0xffff_ffff }),
    d: fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
    e: fc.maxSafeNat(),
  })
  fc.assert(
    fc.property(values, fc.nat(20), (values, at) => {
      const buffer = Buffer.alloc(64, 0xaa)
      const end = all.encode(values, buffer, at)
      t.equal(end, at + all.size)
      t.same(all.decode(buffer, at), values)
      t.ok(buffer.subarray(0, at).every(byte => byte === 0xaa) && buffer.subarray(end).every(byte => byte === 0xaa))
    }),
    { numRuns: 100 },
  )
})

t.test('an offset that would not be exact is a RangeError, in both directions', async t => {
  const record = struct('an offset', 8, { offset })
  t.equal(record.decode(bytes((1n << 53n) - 1n)).offset, Number.MAX_SAFE_INTEGER)
  t.throws(() => record.decode(bytes(1n << 53n)), { name: 'RangeError', message: /^9007199254740992 is 2\^53 or more/ })
  t.throws(() => record.decode(bytes((1n << 64n) - 1n)), RangeError)
  for (const value of [2 ** 53, -1, 0.5, NaN, Infinity]) t.throws(() => record.bytes({ offset: value }), RangeError)
})

t.test('a table that does not add up to the stated size fails as it loads', async t => {
  t.throws(() => struct('short', 4, { a: u8, b: u16 }), {
    name: 'RangeError',
    message: 'short: the fields are 3 bytes, and should be 4',
  })
})

t.test('a buffer that is too short, and a value that does not fit, are RangeErrors', async t => {
  t.throws(() => all.decode(Buffer.alloc(22)), RangeError)
  t.throws(() => all.decode(Buffer.alloc(30), 8), RangeError)
  t.throws(() => all.encode(all.decode(Buffer.alloc(23)), Buffer.alloc(22)), RangeError)
  t.throws(() => all.bytes({ a: 256, b: 0, c: 0, d: 0n, e: 0 }), RangeError)
})

t.test('the magic numbers are what they spell', async t => {
  t.equal(text(protocol.NBD_MAGIC), 'NBDMAGIC')
  t.equal(text(protocol.OPTION_MAGIC), 'IHAVEOPT')
  t.equal(
    protocol.greeting.bytes({ magic: protocol.NBD_MAGIC, optionMagic: protocol.OPTION_MAGIC, flags: 3 }).toString('latin1'),
    'NBDMAGICIHAVEOPT\0\x03',
  )
})

t.test('numbers have their names in messages', async t => {
  t.equal(protocol.nameOf(protocol.Command, 3), 'FLUSH')
  t.equal(protocol.nameOf(protocol.OptionReply, 0x8000_0009), 'ERR_TOO_BIG')
  t.equal(protocol.nameOf(protocol.OptionReply, 0x8000_00ff), '0x800000ff')
  t.equal(protocol.nameOf(protocol.Command, 9), '9')
})
