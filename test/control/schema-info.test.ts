// What query-qmp-schema makes of our schemas. That it says of QEMU's commands what QEMU says is test/interop/qmp-schema.test.ts.

import t from 'tap'
import { z } from 'zod'
import { command } from '../../src/control/command.ts'
import { commands } from '../../src/control/commands/index.ts'
import { eventTypes } from '../../src/control/event-types.ts'
import { int64, named, uint32 } from '../../src/control/qapi-type.ts'
import { schemaInfo } from '../../src/control/schema-info.ts'

const run = () => undefined
const common = { 'node-name': z.string().optional(), size: int64 }
const tree: z.ZodType = z.lazy(() => z.strictObject({ left: node.optional(), right: node.optional() }))
const node = named('Node', z.union([z.string(), tree]))

t.test('types have numbers in the order of their first use, and built-in ones their name', async t => {
  const one = command({
    name: 'one',
    summary: 'One.',
    features: ['unstable'],
    arguments: z.strictObject({
      id: z.string(),
      speed: int64.default(0),
      limit: uint32.optional(),
      ratio: z.number().optional(),
      mode: z.enum(['a', 'b']).default('a').describe('Of two.'),
      list: z.array(z.strictObject({ name: z.string().meta({ features: ['deprecated'] }) })),
      anything: z.unknown(),
      open: z.record(z.string(), z.unknown()),
    }),
    returns: z.array(z.string()),
    run: () => [],
  })
  t.same(
    schemaInfo(
      [one],
      [
        { name: 'ONE', summary: 'Happens.', data: z.strictObject({ flag: z.boolean() }) },
        { name: 'TWO', summary: 'Too.', data: z.strictObject({}) },
      ],
    ),
    [
      { name: 'one', 'meta-type': 'command', 'arg-type': '0', 'ret-type': '[str]', features: ['unstable'] },
      { name: 'ONE', 'meta-type': 'event', 'arg-type': '1' },
      { name: 'TWO', 'meta-type': 'event', 'arg-type': '2' },
      {
        name: '0',
        'meta-type': 'object',
        members: [
          { name: 'id', type: 'str', features: undefined },
          { name: 'speed', type: 'int', default: null, features: undefined },
          { name: 'limit', type: 'int', default: null, features: undefined },
          { name: 'ratio', type: 'number', default: null, features: undefined },
          { name: 'mode', type: '3', default: null, features: undefined },
          { name: 'list', type: '[4]', features: undefined },
          { name: 'anything', type: 'any', features: undefined },
          { name: 'open', type: 'any', features: undefined },
        ],
      },
      { name: 'str', 'meta-type': 'builtin', 'json-type': 'string' },
      { name: '[str]', 'meta-type': 'array', 'element-type': 'str' },
      { name: '1', 'meta-type': 'object', members: [{ name: 'flag', type: 'bool', features: undefined }] },
      { name: '2', 'meta-type': 'object', members: [] },
      { name: 'int', 'meta-type': 'builtin', 'json-type': 'int' },
      { name: 'number', 'meta-type': 'builtin', 'json-type': 'number' },
      { name: '3', 'meta-type': 'enum', members: [{ name: 'a' }, { name: 'b' }], values: ['a', 'b'] },
      { name: '4', 'meta-type': 'object', members: [{ name: 'name', type: 'str', features: ['deprecated'] }] },
      { name: '[4]', 'meta-type': 'array', 'element-type': '4' },
      { name: 'any', 'meta-type': 'builtin', 'json-type': 'value' },
      { name: 'bool', 'meta-type': 'builtin', 'json-type': 'boolean' },
    ],
  )
})

t.test('a union has what all variants share, and each its own', async t => {
  const add = command({
    name: 'add',
    summary: 'Adds.',
    arguments: z.discriminatedUnion('driver', [
      z.strictObject({ driver: z.literal('file'), ...common, filename: z.string() }),
      z.strictObject({ driver: z.literal(['null-co', 'null-aio']), ...common }),
    ]),
    run,
  })
  t.same(JSON.parse(JSON.stringify(schemaInfo([add], []))), [
    { name: 'add', 'meta-type': 'command', 'arg-type': '0', 'ret-type': '1' },
    {
      name: '0',
      'meta-type': 'object',
      members: [
        { name: 'driver', type: '2' },
        { name: 'node-name', type: 'str', default: null },
        { name: 'size', type: 'int' },
      ],
      tag: 'driver',
      variants: [
        { case: 'file', type: '3' },
        { case: 'null-co', type: '1' },
        { case: 'null-aio', type: '1' },
      ],
    },
    { name: '1', 'meta-type': 'object', members: [] },
    {
      name: '2',
      'meta-type': 'enum',
      members: [{ name: 'file' }, { name: 'null-co' }, { name: 'null-aio' }],
      values: ['file', 'null-co', 'null-aio'],
    },
    { name: 'str', 'meta-type': 'builtin', 'json-type': 'string' },
    { name: 'int', 'meta-type': 'builtin', 'json-type': 'int' },
    { name: '3', 'meta-type': 'object', members: [{ name: 'filename', type: 'str' }] },
  ])
})

t.test('a type that contains itself comes to an end', async t => {
  const grow = command({ name: 'grow', summary: 'Grows.', arguments: tree, run })
  t.same(JSON.parse(JSON.stringify(schemaInfo([grow], []))), [
    { name: 'grow', 'meta-type': 'command', 'arg-type': '0', 'ret-type': '1' },
    {
      name: '0',
      'meta-type': 'object',
      members: [
        { name: 'left', type: '2', default: null },
        { name: 'right', type: '2', default: null },
      ],
    },
    { name: '1', 'meta-type': 'object', members: [] },
    { name: '2', 'meta-type': 'alternate', members: [{ type: 'str' }, { type: '0' }] },
    { name: 'str', 'meta-type': 'builtin', 'json-type': 'string' },
  ])
})

t.test('the schema of our own commands is whole, and the same each time', async t => {
  const entries = schemaInfo(commands, eventTypes)
  t.same(schemaInfo(commands, eventTypes), entries)
  const names = new Set(entries.map(({ name }) => name))
  t.equal(names.size, entries.length, 'no name is there twice')
  const used = [...JSON.stringify(entries).matchAll(/"(?:[a-z]+-)?type":"(.*?)"/g)]
    .map(([, name]) => name!)
    .filter(
      name =>
        !['command', 'event', 'object', 'array', 'enum', 'alternate', 'builtin', 'string', 'boolean', 'value'].includes(name),
    )
  t.ok(used.length > 0)
  t.same(
    used.filter(name => !names.has(name)),
    [],
    'every type that is named is described',
  )
})
