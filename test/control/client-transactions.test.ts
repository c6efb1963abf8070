// Transactions step by step: transaction-begin, ordinary commands, transaction-commit or -rollback; and whatever ends them otherwise.

import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from '../helpers/property.ts'
import t from 'tap'
import { Appliance } from '../../src/appliance.ts'
import { createLog } from '../../src/base/log.ts'
import { messageOf } from '../../src/base/errors.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { settingsWithoutFile } from '../../src/settings/without-file.ts'
import { scratchFolder } from '../helpers/control.ts'

const NODES = ['a', 'b']

/** A daemon with two empty disks, and clients of it. */
async function room(stack: AsyncDisposableStack) {
  const folder = await scratchFolder(stack)
  const socket = join(folder, 'control.sock')
  const settings = { ...settingsWithoutFile(), control: { socket }, scratch: { path: folder, limit: 1 << 30, timeoutMs: 1000 } }
  stack.use(await Appliance.start(settings, createLog('silent')))
  const connect = async () => stack.use(await QmpClient.connect(socket))
  const client = await connect()
  for (const name of [...NODES, 'target'])
    await client.execute('blockdev-add', { driver: 'null-co', 'node-name': name, size: 1 << 20 })
  return { client, connect }
}

type Client = Awaited<ReturnType<typeof room>>['client']

interface NodeInfo {
  readonly 'node-name': string
  readonly 'dirty-bitmaps'?: readonly { readonly name: string }[]
}

async function bitmapsOf(client: Client) {
  const nodes = (await client.execute('query-named-block-nodes')) as NodeInfo[]
  return Object.fromEntries(nodes.map(node => [node['node-name'], node['dirty-bitmaps'] ?? []]))
}

const namesOn = async (client: Client, node: string) => (await bitmapsOf(client))[node]!.map(({ name }) => name)

const query = (client: Client) => client.execute('query-transaction') as Promise<object>

t.test('what is asked for after transaction-begin happens at transaction-commit, and not before', async t => {
  await using stack = new AsyncDisposableStack()
  const { client, connect } = await room(stack)
  const other = await connect()
  await client.execute('transaction-begin')
  await client.execute('block-dirty-bitmap-add', { node: 'a', name: 'one' })
  await client.execute('block-dirty-bitmap-add', { node: 'b', name: 'two', disabled: true })
  await client.execute('block-dirty-bitmap-merge', { node: 'b', target: 'two', bitmaps: [{ node: 'a', name: 'one' }] })
  t.same(await namesOn(client, 'a'), [])
  t.same(await query(client), {
    status: 'open',
    actions: [
      { type: 'block-dirty-bitmap-add', status: 'prepared' },
      { type: 'block-dirty-bitmap-add', status: 'prepared' },
      { type: 'block-dirty-bitmap-merge', status: 'prepared' },
    ],
  })
  await t.rejects(other.execute('block-dirty-bitmap-add', { node: 'a', name: 'one' }), /already exists: one/, 'the name is taken')
  await other.execute('block-dirty-bitmap-add', { node: 'a', name: 'other' })
  await client.execute('transaction-commit')
  t.same(await namesOn(other, 'a'), ['one', 'other'])
  t.same(await namesOn(other, 'b'), ['two'])
  t.match(await query(client), { status: 'committed' })
  await client.execute('block-dirty-bitmap-remove', { node: 'a', name: 'one' })
  t.same(await namesOn(client, 'a'), ['other'], 'from then on commands are alone again')
})

t.test('an error is told at once and remembered, and then nothing happens, whatever came after it', async t => {
  await using stack = new AsyncDisposableStack()
  const { client } = await room(stack)
  await client.execute('transaction-begin')
  await client.execute('block-dirty-bitmap-add', { node: 'a', name: 'one' })
  await t.rejects(client.execute('block-dirty-bitmap-remove', { node: 'a', name: 'nope' }), /Dirty bitmap 'nope' not found/)
  await client.execute('block-dirty-bitmap-add', { node: 'b', name: 'two' })
  t.match(await query(client), {
    status: 'failed',
    actions: [
      { status: 'prepared' },
      { type: 'block-dirty-bitmap-remove', status: 'failed', error: "Dirty bitmap 'nope' not found" },
      { status: 'prepared' },
    ],
  })
  await t.rejects(
    client.execute('transaction-commit'),
    /nothing has happened, because block-dirty-bitmap-remove failed: Dirty bitmap 'nope' not found/,
  )
  t.same([await namesOn(client, 'a'), await namesOn(client, 'b')], [[], []])
  t.match(await query(client), { status: 'rolled-back' })
  await t.rejects(client.execute('transaction-commit'), /the transaction is rolled-back; transaction-begin begins another/)
})

t.test('a rollback, a lost connection and the time that is over each give back what was prepared', async t => {
  await using stack = new AsyncDisposableStack()
  const { client, connect } = await room(stack)
  const add = { node: 'a', name: 'one' }

  await client.execute('transaction-begin')
  await client.execute('block-dirty-bitmap-add', add)
  await client.execute('transaction-rollback')

  const gone = await connect()
  await gone.execute('transaction-begin')
  await gone.execute('block-dirty-bitmap-add', add)
  await t.rejects(client.execute('block-dirty-bitmap-add', add), /already exists/)
  await gone[Symbol.asyncDispose]()
  for (let tries = 0; (await taken(client, add)) && tries < 200; tries++) await sleep(10)
  await client.execute('block-dirty-bitmap-remove', add)

  await client.execute('transaction-begin', { timeout: 1 })
  await client.execute('block-dirty-bitmap-add', add)
  for (let tries = 0; JSON.stringify(await query(client)).includes('"open"') && tries < 500; tries++) await sleep(10)
  t.match(await query(client), { status: 'rolled-back', reason: 'it was open for longer than 1 s' })
  await client.execute('block-dirty-bitmap-add', add)
  await t.rejects(client.execute('transaction-commit'), /it was open for longer than 1 s; transaction-begin begins another/)
})

async function taken(client: Client, add: object) {
  try {
    await client.execute('block-dirty-bitmap-add', add)
    return false
  } catch (error) {
    t.match(messageOf(error), /already exists/)
    return true
  }
}

t.test('what others have changed meanwhile is found at the commit, and then nothing happens', async t => {
  await using stack = new AsyncDisposableStack()
  const { client, connect } = await room(stack)
  const other = await connect()
  await client.execute('transaction-begin')
  await client.execute('block-dirty-bitmap-add', { node: 'a', name: 'one' })
  await client.execute('block-dirty-bitmap-add', { node: 'b', name: 'two' })
  await other.execute('blockdev-del', { 'node-name': 'b' })
  await t.rejects(client.execute('transaction-commit'), {
    message: /^Cannot find device='b' nor node-name='b'; nothing has happened, and the transaction is over$/,
  })
  t.same(await namesOn(client, 'a'), [])
})

t.test('there is one transaction of a connection at a time, and none where none was begun', async t => {
  await using stack = new AsyncDisposableStack()
  const { client } = await room(stack)
  for (const command of ['query-transaction', 'transaction-commit', 'transaction-rollback'])
    await t.rejects(client.execute(command), /this connection has no transaction; transaction-begin begins one/)
  await client.execute('transaction-begin')
  await t.rejects(client.execute('transaction-begin'), /is open already/)
  await t.rejects(client.execute('transaction', { actions: [] }), /commands of their own/)
  await t.rejects(client.execute('transaction-begin', { timeout: 0 }), /seconds from 1 to 86400|is open already/)
  await client.execute('transaction-commit')
})

t.test('a backup begins at the commit, and its job is grouped where the transaction is', async t => {
  await using stack = new AsyncDisposableStack()
  const { client } = await room(stack)
  await client.execute('transaction-begin', { properties: { 'completion-mode': 'grouped' } })
  await client.execute('blockdev-backup', { device: 'a', target: 'target', 'job-id': 'j', sync: 'full', 'auto-dismiss': false })
  await client.execute('transaction-commit')
  const status = async () => ((await client.execute('query-jobs')) as { status: string }[]).map(({ status }) => status)
  for (let tries = 0; (await status())[0] !== 'concluded' && tries < 500; tries++) await sleep(10)
  t.same(await status(), ['concluded'])
})

const action = fc.oneof(
  ...NODES.flatMap(node =>
    ['x', 'y'].flatMap(name => [
      fc.constant({ type: 'block-dirty-bitmap-add', data: { node, name } }),
      fc.constant({ type: 'block-dirty-bitmap-remove', data: { node, name } }),
      fc.constant({ type: 'block-dirty-bitmap-clear', data: { node, name } }),
      fc.constant({ type: 'block-dirty-bitmap-disable', data: { node, name } }),
      fc.constant({ type: 'block-dirty-bitmap-enable', data: { node, name } }),
      fc.constant({ type: 'block-dirty-bitmap-merge', data: { node, target: name, bitmaps: [{ node: 'a', name: 'x' }] } }),
    ]),
  ),
)

/** What went wrong, or undefined. */
const told = (work: Promise<unknown>): Promise<string | undefined> =>
  work.then(
    () => undefined,
    (error: unknown) => messageOf(error),
  )

t.test('step by step it comes to the same as all at once', async t => {
  await using stack = new AsyncDisposableStack()
  const [atOnce, bySteps] = [(await room(stack)).client, (await room(stack)).client]
  let committed = 0
  await fc.assert(
    fc.asyncProperty(fc.array(action, { minLength: 1, maxLength: 5 }), async actions => {
      // All bitmaps are there to begin with, so that most verbs can be done.
      for (const client of [atOnce, bySteps])
        for (const node of NODES)
          for (const name of ['x', 'y'])
            if (!(await namesOn(client, node)).includes(name)) await client.execute('block-dirty-bitmap-add', { node, name })
      const expected = await told(atOnce.execute('transaction', { actions }))
      await bySteps.execute('transaction-begin')
      const errors: (string | undefined)[] = []
      for (const { type, data } of actions) errors.push(await told(bySteps.execute(type, data)))
      const end = await told(bySteps.execute('transaction-commit'))
      const first = errors.find(error => error !== undefined)
      if (first !== expected) throw new Error(`${String(first)} instead of ${String(expected)}`)
      if ((end === undefined) !== (expected === undefined)) throw new Error(`the commit said ${String(end)}`)
      if (expected === undefined) committed++
      const [one, two] = [JSON.stringify(await bitmapsOf(atOnce)), JSON.stringify(await bitmapsOf(bySteps))]
      if (one !== two) throw new Error(`${two} instead of ${one}`)
    }),
    { numRuns: 150 },
  )
  t.ok(committed > 10, `${committed} of 150 were committed`)
})
