// The stream of requests: what is read of bytes, wherever they are cut, and that no bytes do harm.

import { deepStrictEqual } from 'node:assert/strict'
import fc from '../helpers/property.ts'
import t from 'tap'
import { Float, toPlain, toText } from '../../src/control/json.ts'
import { JsonStream, requestLimits, type JsonItem, type JsonLimits } from '../../src/control/json-stream.ts'

function read(chunks: readonly (Buffer | string)[], limits: JsonLimits = requestLimits): JsonItem[] {
  const stream = new JsonStream(limits)
  return chunks.flatMap(chunk => [...stream.feed(Buffer.from(chunk as string))])
}

/** Values as they are, errors as their text. */
const seen = (items: JsonItem[]) => items.map(item => ('error' in item ? item.error : toPlain(item.value)))

const parse = (what: string) => `JSON parse error, ${what}`
const EXPECTING = parse('expecting value')

// As qemu-storage-daemon answers; test/interop/qmp.test.ts asks it about many more.
const table: [input: string | Buffer, ...items: unknown[]][] = [
  ['{"a":1}{"b":[]}\n[2]', { a: 1 }, { b: [] }, [2]],
  ["{'it\\'s':'a\"b'}", { "it's": 'a"b' }],
  ['{"a" : [ true,false , null, "x" , 1.5, -7, 2e3]}\r\n', { a: [true, false, null, 'x', 1.5, -7, 2000] }],
  ['"\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\uD83D\\uDE00\\u0000é€😀"', '"\\/\b\f\n\r\té😀\0é€😀'],
  ['{"__proto__":1,"constructor":2}', JSON.parse('{"__proto__":1,"constructor":2}')],
  ['1'],
  ['1 ', 1],
  ['1"x"2"y"', 1, 'x', 2, 'y'],
  ['nullnull\n', parse("invalid keyword 'nullnull'")],
  ['}', EXPECTING],
  ['{]', EXPECTING],
  ['{"a":]}', EXPECTING, EXPECTING],
  ['{"a":1}}', { a: 1 }, EXPECTING],
  ['{"a" 1}', parse('missing : in object pair')],
  ['{"a":1 "b":2}', parse('expected separator in dict')],
  ['[1 2]', parse('expected separator in list')],
  ['{1:2}', parse('key is not a string in object')],
  ['{"a":1,"a":2}', parse('duplicate key')],
  ['[1,]', EXPECTING],
  ['{[}]', EXPECTING],
  ['{[]}', parse('key is not a string in object')],
  ['01\n', parse("stray '01'")],
  ['-\n1 ', parse("stray '-\n'")],
  ['@ skipped, "and this" {"a":1}', parse("stray '@'"), EXPECTING, 'and this', { a: 1 }],
  [Buffer.from([0xff]), parse("stray '\ufffd'")],
  [Buffer.from('{"a":\xff{"b":1}', 'latin1'), parse("stray '\ufffd'"), { b: 1 }],
  [Buffer.from([0]), parse("stray ''")],
  ['"abc\n"', parse(`stray '"abc\n'`)],
  ['"\\x"', parse('invalid escape sequence in string')],
  ['"\\u12"', parse('\\u12" is not a valid Unicode character')],
  ['"\\ud800"', parse('\\ud800 is not a valid Unicode character')],
  ['"\\ud800\\u0041"', parse('\\ud800 is not a valid Unicode character')],
  ['"\\uffff"', parse('\\uffff is not a valid Unicode character')],
  [Buffer.from('"\xc3"', 'latin1'), parse('invalid UTF-8 sequence in string')],
  [Buffer.from('"\xed\xa0\x80"', 'latin1'), parse('invalid UTF-8 sequence in string')],
  [Buffer.from('"\xc0\xaf"', 'latin1'), parse('invalid UTF-8 sequence in string')],
  [Buffer.from('"\xc0\x80"', 'latin1'), '\0'],
]

t.test('a stream is read as QEMU reads it, wherever it is cut in two', async t => {
  for (const [input, ...items] of table) {
    const bytes = Buffer.from(input as string)
    t.same(seen(read([bytes])), items, String(input))
    for (let cut = 0; cut <= bytes.length; cut++) {
      const cuts = [bytes.subarray(0, cut), bytes.subarray(cut)]
      if (JSON.stringify(seen(read(cuts))) !== JSON.stringify(items)) t.fail(`${String(input)} cut at ${cut}`)
    }
  }
})

const number = (text: string) => (read([`${text} `])[0] as { value: unknown }).value

t.test('numbers keep what QEMU tells apart', async t => {
  t.equal(number('9007199254740991'), 9007199254740991)
  t.equal(number('9007199254740993'), 9007199254740993n)
  t.equal(number('18446744073709551615'), 18446744073709551615n)
  t.equal(number('-9223372036854775808'), -9223372036854775808n)
  t.equal(Object.is(number('-0'), 0), true)
  for (const text of ['18446744073709551616', '-9223372036854775809', '1.0', '1e2', '9'.repeat(100_000)])
    t.same(number(text), new Float(Number(text)), text.slice(0, 30))
})

t.test('a value that is too large is refused, and the stream goes on', async t => {
  const small: JsonLimits = { bytes: 20, tokens: 8, nesting: 3 }
  t.same(seen(read(['[[[1]]]', '[[[[', '\xff', '[2]'], small)).slice(0, 2), [[[[1]]], 'JSON nesting depth limit exceeded'])
  t.same(seen(read(['[1,2,3,4]'], small)), ['JSON token count limit exceeded'])
  t.same(seen(read(['[1,2,3]', '[1,2,3,4,5][6]'], small)), [[1, 2, 3], 'JSON token count limit exceeded', 5, EXPECTING, [6]])
  t.equal(seen(read(['"', 'a'.repeat(30)], small))[0], 'JSON token size limit exceeded')
  t.equal(seen(read(['[', '"aaaaaaaa",', '"bbbbbbbb"'], small))[0], 'JSON token size limit exceeded')
  t.same(seen(read(['"', 'a'.repeat(30), '\n\xff\n', '{}'], small)).at(-1), {})
})

t.test('what JSON.stringify writes is read as it was, in chunks of any size', async () => {
  const anything = fc.jsonValue().filter(value => !/\\ud[89a-f]|[\ufdd0-\ufdef\ufffe\uffff]/i.test(JSON.stringify(value)))
  const valid = fc.tuple(fc.array(fc.tuple(anything, fc.boolean())), fc.array(fc.nat(20), { minLength: 1 }))
  await fc.assert(
    fc.asyncProperty(valid, async ([values, sizes]) => {
      const text = values.map(([value, ours]) => (ours ? toText(value) : JSON.stringify(value))).join('\n') + '\n'
      const items = read(chunked(Buffer.from(text), sizes))
      deepStrictEqual(
        items.map(item => JSON.stringify(toPlain((item as { value: never }).value))),
        values.map(([value]) => JSON.stringify(JSON.parse(JSON.stringify(value)))),
      )
    }),
  )
})

t.test('no bytes make it throw, hang, or depend on where they are cut', async () => {
  const noise = fc.array(
    fc.oneof(
      fc.constantFrom(...'{}[]:,"\'\\ 0-.e1ut\n\t'.split('')),
      fc.constantFrom('null', '"\\u00', '{"a":'),
      fc.string({ unit: 'binary', maxLength: 3 }),
    ),
    { maxLength: 40 },
  )
  await fc.assert(
    fc.asyncProperty(noise, fc.array(fc.nat(5), { minLength: 1 }), async (parts, sizes) => {
      const bytes = Buffer.from(parts.join(''))
      deepStrictEqual(read(chunked(bytes, sizes)), read([bytes]))
    }),
    { numRuns: 200 },
  )
})

/** Chunks of these sizes, again and again; a size of 0 is an empty chunk once. */
function chunked(bytes: Buffer, sizes: readonly number[]): Buffer[] {
  const chunks: Buffer[] = []
  for (let at = 0, turn = 0; at < bytes.length; turn++) {
    const size = turn < sizes.length ? sizes[turn]! : Math.max(1, sizes[turn % sizes.length]!)
    chunks.push(bytes.subarray(at, at + size))
    at += size
  }
  return chunks
}

t.test('text is ASCII in one line, and says what JSON can say', async t => {
  t.equal(toText({ a: [1, 'é\n', null, undefined].slice(0, 3), b: undefined, c: 10n }), '{"a": [1, "\\u00E9\\n", null], "c": 10}')
  t.equal(toText([1e21, 1e20, -0, 0.1, NaN, new Float(-1.5)]), '[1e+21, 100000000000000000000, 0, 0.1, null, -1.5]')
  t.equal(toText(new Date(0)), '"1970-01-01T00:00:00.000Z"')
  t.throws(() => toText({ f: () => 1 }), TypeError)
})
