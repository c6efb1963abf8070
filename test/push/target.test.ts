// The loader of push targets: ours and other people's, and what it says when they are wrong.

import { once } from 'node:events'
import { createServer, type AddressInfo, type Socket } from 'node:net'
import { readFileSync, writeFileSync } from 'node:fs'
import t from 'tap'
import { createLog } from '../../src/base/log.ts'
import { BadSettings } from '../../src/base/errors.ts'
import { loadPlugin, openTarget } from '../../src/push/target.ts'
import { MemoryStore, MemoryTarget } from '../helpers/memory-target.ts'
import { targetSuite } from '../helpers/target-suite.ts'
import { settingsFor } from '../helpers/s3.ts'

const store = new MemoryStore()

targetSuite(t, 'the memory target of our tests', async () => new MemoryTarget(store))

const context = { log: createLog('silent') }

t.test('a plugin of ours is found by its name', async t => {
  const path = `${t.testdir()}/new`
  await using target = await openTarget({ plugin: 'file', path }, context)
  await target.put('x', Buffer.from('1'))
  t.equal(readFileSync(`${path}/x`, 'utf8'), '1')
  t.equal(target.location, path)
})

t.test("anybody's plugin is loaded by its package name or path, in the same way", async t => {
  const folder = t.testdir()
  writeFileSync(
    `${folder}/mine.mjs`,
    `export const plugin = {
       name: 'mine',
       options: { safeParse: options => ({ success: true, data: options }) },
       open: async (options, { log }) => ({ location: options.greeting + typeof log.info }),
     }`,
  )
  const target = await openTarget({ plugin: `${folder}/mine.mjs`, greeting: 'hello ' }, context)
  t.equal(target.location, 'hello function')
})

t.test('what is wrong with a plugin or its options is said with the place', async t => {
  await t.rejects(openTarget({ plugin: 'file', path: '', pth: 1 }, context, 'repositories.local'), {
    name: 'BadSettings',
    message: /^repositories\.local: the options of plugin 'file' are wrong: path: a path must not be empty; .*pth/,
  })
  await t.rejects(loadPlugin('no-such-package-of-anybody', 'repositories.x'), {
    name: 'BadSettings',
    message: /^repositories\.x: 'no-such-package-of-anybody' does not load: .*; ours are file and s3; others are npm packages$/,
  })
  const folder = t.testdir({ 'other.mjs': 'export const plugin = { name: 1 }', 'broken.mjs': 'throw new Error("ouch")' })
  await t.rejects(loadPlugin(`${folder}/other.mjs`, 'x'), { message: /is no push target/ })
  await t.rejects(loadPlugin(`${folder}/broken.mjs`, 'x'), { message: /does not load: ouch/ })
  await t.rejects(loadPlugin('yaml', 'x'), BadSettings)
})

t.test('a store that does not answer is not waited for by who calls it off', async t => {
  const sockets = new Set<Socket>()
  const store = createServer(socket => sockets.add(socket.on('error', () => socket.destroy()).resume())).listen(0, '127.0.0.1')
  t.teardown(() => {
    store.close()
    for (const socket of sockets) socket.destroy()
  })
  await once(store, 'listening')
  const endpoint = `http://127.0.0.1:${(store.address() as AddressInfo).port}`
  const calledOff = new AbortController()
  const opening = openTarget(
    { plugin: 's3', ...settingsFor(endpoint, 'bucket', { timeout: '10m' }) },
    { log: createLog('silent'), signal: calledOff.signal },
  )
  await once(store, 'connection')
  calledOff.abort(new Error('the daemon stopped'))
  await t.rejects(opening, /the daemon stopped/)
})
