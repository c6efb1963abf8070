// What a command gets for its arguments. That wrong ones are answered as QEMU does is test/interop/qmp.test.ts.

import fc from '../helpers/property.ts'
import t from 'tap'
import { z } from 'zod'
import { InvalidParameter } from '../../src/base/errors.ts'
import { parseArguments } from '../../src/control/arguments.ts'
import { Float, type Json, type JsonObject } from '../../src/control/json.ts'
import { JsonStream } from '../../src/control/json-stream.ts'
import { int64, named, qapiTypeOf, uint16, uint32, uint64 } from '../../src/control/qapi-type.ts'
import { qemuCommands } from '../helpers/qemu-commands.ts'

const json = (text: string) => ([...new JsonStream().feed(Buffer.from(text))][0] as { value: JsonObject }).value
const parse = (schema: z.ZodType, text: string): unknown => parseArguments(schema, json(text))

t.test('arguments become what the schema makes of them', async t => {
  const schema = z.strictObject({
    text: z.string(),
    flag: z.boolean().optional(),
    many: z.int().default(7),
    ratio: z.number().optional(),
    anything: z.unknown().optional(),
    cache: z.strictObject({ direct: z.boolean().default(false) }).prefault({}),
    upper: z
      .string()
      .transform(text => text.toUpperCase())
      .optional(),
    nothing: named('StrOrNull', z.string().nullable()).optional(),
    names: z.record(z.string(), int64).optional(),
  })
  t.same(parse(schema, '{"text":"x"}'), { text: 'x', many: 7, cache: { direct: false } })
  t.same(
    parse(
      schema,
      `{"nothing":null,"text":"x","flag":false,"many":-1,"ratio":1.5,"anything":[1.0,{"a":12345678901234567890}],"cache":{"direct":true},
        "upper":"up","names":{"a":1}}`,
    ),
    {
      text: 'x',
      flag: false,
      many: -1,
      ratio: 1.5,
      anything: [1, { a: 12345678901234567000 }],
      cache: { direct: true },
      upper: 'UP',
      nothing: null,
      names: { a: 1 },
    },
  )
  t.same(parse(schema, '{"text":"x","ratio":2}'), { text: 'x', many: 7, ratio: 2, cache: { direct: false } })
})

t.test('integers are taken to their limits and refused beyond', async t => {
  const limits: [schema: z.ZodType, taken: [text: string, value: number][], refused: [text: string, message: string][]][] = [
    [
      int64,
      [
        ['9223372036854775807', 2 ** 63],
        ['-9223372036854775808', -(2 ** 63)],
        ['9007199254740991', 9007199254740991],
      ],
      [
        ['9223372036854775808', "Invalid parameter type for 'n', expected: integer"],
        ['1.0', "Invalid parameter type for 'n', expected: integer"],
      ],
    ],
    [
      uint64,
      [
        ['18446744073709551615', 2 ** 64],
        ['-1', 2 ** 64],
        ['-9223372036854775808', 2 ** 63],
      ],
      [
        ['18446744073709551616', "Parameter 'n' expects uint64"],
        ['"1"', "Parameter 'n' expects uint64"],
      ],
    ],
    [
      uint32,
      [['4294967295', 4294967295]],
      [
        ['4294967296', "Parameter 'n' expects uint32_t"],
        ['-1', "Parameter 'n' expects uint32_t"],
        ['1e3', "Parameter 'n' expects uint64"],
      ],
    ],
    [uint16, [['65535', 65535]], [['65536', "Parameter 'n' expects uint16_t"]]],
    [
      z.int32(),
      [['-2147483648', -2147483648]],
      [
        ['2147483648', "Parameter 'n' expects int32_t"],
        ['9223372036854775808', "Invalid parameter type for 'n', expected: integer"],
      ],
    ],
    [z.int().min(1), [['1', 1]], [['0', "Parameter 'n': Too small: expected number to be >=1"]]],
  ]
  for (const [of, taken, refused] of limits) {
    const schema = z.strictObject({ n: of })
    for (const [text, value] of taken) t.same(parse(schema, `{"n":${text}}`), { n: value }, text)
    for (const [text, message] of refused) t.throws(() => parse(schema, `{"n":${text}}`), new InvalidParameter(message), text)
  }
})

t.test('what a refinement says is the answer, and it is asked last', async t => {
  const schema = z
    .strictObject({ a: int64.optional(), b: int64.optional() })
    .refine(({ a, b }) => a === undefined || b === undefined, "'a' and 'b' cannot be specified at the same time")
  t.throws(() => parse(schema, '{"a":1,"b":2}'), { message: "'a' and 'b' cannot be specified at the same time" })
  t.throws(() => parse(schema, '{"a":1,"b":2,"c":3}'), { message: "Parameter 'c' is unexpected" })
})

t.test('names that every object has are no members', async t => {
  const schema = z.strictObject({ id: z.string().optional() })
  for (const name of ['__proto__', 'constructor', 'toString'])
    t.throws(() => parse(schema, `{"${name}":{}}`), { message: `Parameter '${name}' is unexpected` })
  const open = z.strictObject({ all: z.record(z.string(), z.unknown()) })
  const { all } = parse(open, '{"all":{"__proto__":{"polluted":true}}}') as { all: Record<string, unknown> }
  t.notOk('polluted' in all)
  t.equal(({} as { polluted?: boolean }).polluted, undefined)
})

t.test('a schema that QAPI cannot say is our mistake', async t => {
  t.throws(() => qapiTypeOf(z.strictObject({ when: z.date() })), { message: "QAPI has nothing like zod's date" })
  t.throws(() => qapiTypeOf(z.union([z.string(), z.strictObject({})])), { message: /an alternate needs a name/ })
})

t.test('no JSON does worse than to be refused', async () => {
  const leaf = fc.oneof(
    fc.constantFrom<Json>(null, true, 0, -1, 2n ** 63n, new Float(0.5), '', 'full', 'x', 'abort', 'unix', 'qcow2', 'file'),
    fc.string(),
  )
  const name = fc.oneof(
    fc.constantFrom(
      'id',
      'device',
      'target',
      'sync',
      'actions',
      'type',
      'data',
      'driver',
      'file',
      'node',
      'name',
      'bitmaps',
      'options',
    ),
    fc.constantFrom('__proto__', 'constructor', ''),
  )
  const { value } = fc.letrec<{ value: Json; object: JsonObject }>(tie => ({
    value: fc.oneof({ maxDepth: 4 }, leaf, fc.array(tie('value'), { maxLength: 3 }), tie('object')),
    object: fc.dictionary(name, tie('value'), { maxKeys: 4, noNullPrototype: false }),
  }))
  const object = fc.dictionary(name, value, { maxKeys: 5 })
  await fc.assert(
    fc.asyncProperty(fc.constantFrom(...qemuCommands), object, async (command, given) => {
      try {
        parseArguments(command.arguments, given)
      } catch (error) {
        if (!(error instanceof InvalidParameter) || error.message === '') throw error
      }
    }),
    { numRuns: 1000 },
  )
})
