// What people may type for `stillpoint qmp`, and what it becomes; and JSON for people.

import fc from '../helpers/property.ts'
import t from 'tap'
import { Misuse } from '../../src/cli/failure.ts'
import { parseLine } from '../../src/cli/qmp/parse-line.ts'
import { prettyJson } from '../../src/cli/qmp/pretty-json.ts'

/** Without its prototypes, which are of no interest. */
const parsed = (text: string) => {
  const line = parseLine(text)
  return line && JSON.parse(JSON.stringify(line))
}

function isRefused(text: string) {
  try {
    parseLine(text)
    return false
  } catch (error) {
    return error instanceof Misuse
  }
}

t.test('a command stands alone, or before JSON, or before key=value pairs', async t => {
  t.same(parsed('query-jobs'), { command: 'query-jobs' })
  t.same(parsed('  query-jobs \t'), { command: 'query-jobs' })
  t.same(parsed('a {"b": [1]}'), { command: 'a', args: { b: [1] } })
  t.same(parsed('a {"b": "c d=e"}'), { command: 'a', args: { b: 'c d=e' } })
  t.same(parsed('a b=c d=1 e=-2 f=true g=false h=01x'), {
    command: 'a',
    args: { b: 'c', d: 1, e: -2, f: true, g: false, h: '01x' },
  })
  t.same(parsed(`a b="c d\\n" e='f "g"' h=[1,2] i='{"j": 1}' k=`), {
    command: 'a',
    args: { b: 'c d\n', e: 'f "g"', h: [1, 2], i: { j: 1 }, k: '' },
  })
  t.same(parsed('blockdev-add driver=raw file.driver=file file.filename=/x=y'), {
    command: 'blockdev-add',
    args: { driver: 'raw', file: { driver: 'file', filename: '/x=y' } },
  })
  t.same(parsed('a __proto__.polluted=1'), JSON.parse('{"command":"a","args":{"__proto__":{"polluted":1}}}'))
  t.notOk('polluted' in {})
})

t.test('a whole request is taken as it is', async t => {
  t.same(parsed('{"execute": "a", "arguments": {"b": 1}, "id": 7}'), { command: 'a', args: { b: 1 }, id: 7 })
  for (const bad of ['{}', '{"execute": 1}', '{"execute": "a", "arguments": []}', '{"execute": "a", "argument": {}}', '{"exec'])
    t.ok(isRefused(bad), bad)
})

t.test('an empty line and a comment are nothing, and what makes no sense is said', async t => {
  for (const nothing of ['', '  ', '# query-jobs', '\r']) t.equal(parseLine(nothing), undefined)
  for (const bad of [
    'a b',
    'a b=c d',
    'a =b',
    'a b="c',
    `a b='c`,
    'a b={',
    'a b=1 b=2',
    'a b=1 b.c=2',
    'a b.c=1 b=2',
    'a {]',
    'a [1]',
  ])
    t.ok(isRefused(bad), bad)
})

t.test('whatever is typed, it is a line or a sentence', async () => {
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom(...'ab=."\'{}[]: ,1\\-#'.split('')) }), text => {
      try {
        const line = parseLine(text)
        return line === undefined || line.command.length > 0
      } catch (error) {
        return error instanceof Misuse
      }
    }),
    { numRuns: 3000 },
  )
})

t.test('JSON for people says the same as JSON, and short things on one line', async t => {
  fc.assert(fc.property(fc.jsonValue(), value => JSON.stringify(JSON.parse(prettyJson(value))) === JSON.stringify(value)))
  t.equal(prettyJson({}), '{}\n')
  t.equal(prettyJson([{ a: 1, b: [true, null] }]), '[{ "a": 1, "b": [true, null] }]\n')
  const long = 'x'.repeat(99)
  t.equal(prettyJson([{ a: long, b: 1 }]), `[\n  {\n    "a": "${long}",\n    "b": 1\n  }\n]\n`)
})
