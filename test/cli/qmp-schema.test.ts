// What the shell of `stillpoint qmp` knows of commands: from our own introspection, and from QEMU's.

import t from 'tap'
import { complete } from '../../src/cli/qmp/complete.ts'
import { Schema } from '../../src/cli/qmp/schema.ts'
import { commands } from '../../src/control/commands/index.ts'
import { eventTypes } from '../../src/control/event-types.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { schemaInfo } from '../../src/control/schema-info.ts'
import { qsdMissing, startQsd } from '../helpers/qemu-storage-daemon.ts'

const ours = new Schema(schemaInfo(commands, eventTypes))
const names = ['backup-begin', 'backup-abort', 'query-jobs']
const offered = async (line: string, schema = ours) => (await complete(line, names, async () => schema))[0]

t.test('Tab offers commands, arguments that are not given yet, and words', async t => {
  t.same(await offered(''), names)
  t.same(await offered('backup-'), ['backup-begin', 'backup-abort'])
  t.same(await offered('q'), ['query-jobs '])
  t.same(await offered('help q'), ['query-jobs'])
  t.same(await complete('backup-begin ma', names, async () => ours), [['machine='], 'ma'])
  t.notOk((await offered('backup-begin machine=db ')).includes('machine'))
  t.ok((await offered('backup-begin machine=db ')).includes('since'))
  t.same(await complete('backup-begin mode=pul', names, async () => ours), [['mode=pull '], 'mode=pul'])
  t.same(await offered('checkpoint-delete children='), ['children=true', 'children=false'])
  t.same(await offered('backup-begin {"ma'), [])
  t.same(await offered('unknown x'), [])
  t.same(await offered('backup-begin machine=db x y=z'), [])
})

t.test('help of a command lists what it takes', async t => {
  const text = ours.describe('backup-begin')!
  t.match(text, /^backup-begin\n  machine: str\n  mode: pull \| push\n  repository: str, optional\n  name: str, optional\n/)
  t.match(text, '\n  expire: int, optional\n')
  t.equal(ours.describe('query-commands'), 'query-commands\n')
  t.equal(ours.describe('unknown'), undefined)
  t.equal(new Schema([]).describe('backup-begin'), undefined)
})

t.test('QEMU’s introspection is understood as well', { skip: qsdMissing }, async t => {
  await using stack = new AsyncDisposableStack()
  await using client = await QmpClient.connect(await startQsd(stack))
  const theirs = await Schema.of(client)
  t.same(await offered('blockdev-add driver=qco', theirs), ['driver=qcow', 'driver=qcow2'])
  t.match(await offered('blockdev-add driver=qcow2 lazy', theirs), ['lazy-refcounts='])
  const text = theirs.describe('blockdev-add')!
  t.match(text, /^blockdev-add\n  .*driver: .* \| raw \| /s)
  t.match(text, /\n  where driver is qcow2:\n(    .*\n)*    lazy-refcounts: bool, optional\n/)
  t.match(text, /\n    file: \{ .* \} or str\n/)
})
