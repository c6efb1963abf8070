// A repository on a store without conditions: one host writes, others read, and another takes over when it is asked to and may.

import t from 'tap'
import { NotSupported } from '../../src/base/errors.ts'
import { collect } from '../../src/repository/collector.ts'
import { NotOwner, SessionExpired } from '../../src/repository/faults.ts'
import { ownerOf, takeOver, thisHost } from '../../src/repository/owner.ts'
import { forget } from '../../src/repository/points.ts'
import { initRepository } from '../../src/repository/repository-file.ts'
import { Repository } from '../../src/repository/repository.ts'
import { Session } from '../../src/repository/session.ts'
import { PreconditionFailed, Unavailable, type PutOptions } from '../../src/repository/target.ts'
import { MemoryStore, MemoryTarget } from '../helpers/memory-target.ts'
import { CHEAP, pushDisks, restored, sourceOf } from '../helpers/push-point.ts'
import { diskContent } from '../helpers/random-bytes.ts'

class WithoutConditions extends MemoryTarget {
  override async put(key: string, body: Uint8Array, options: PutOptions = {}) {
    if (options.ifAbsent || options.ifMatch !== undefined) throw new NotSupported('no conditions')
    return super.put(key, body, options)
  }
}

const [first, second] = ['first', 'second'].map(name => ({ id: name, host: `${name}.example` })) as [typeof host, typeof host]
const host = { id: '', host: '' }
const bytes = diskContent(20 * 65536, 1)
const disks = [{ name: 'root', source: sourceOf(bytes) }]

async function shared() {
  const store = new MemoryStore()
  const target = new WithoutConditions(store)
  await initRepository(target, { cost: CHEAP, chunkSize: 65536 })
  const open = (me: typeof host) => Repository.open(target, { me })
  return { target, store, mine: await open(first), theirs: await open(second) }
}

t.test('who writes first owns it; another reads, and writes nothing until it takes over', async t => {
  const { mine, theirs } = await shared()
  t.equal(mine.cas, false)
  t.equal(await ownerOf(mine), undefined)
  const { key } = await pushDisks(mine, disks)
  t.match(await ownerOf(theirs), first)
  t.ok((await restored(theirs, key, 'root')).equals(bytes))
  const refusal = {
    name: 'NotOwner',
    exitCode: 11,
    message: /one host writes to it, and that has been first.example since .*take-over/,
  }
  await t.rejects(pushDisks(theirs, disks), refusal)
  await t.rejects(collect(theirs, { graceMs: 0 }), refusal)
  await t.rejects(forget(theirs, key), refusal)
  await takeOver(theirs, { settleMs: 0 })
  await takeOver(theirs, { settleMs: 0 }) // is it already
  const { key: next } = await pushDisks(theirs, disks)
  await t.rejects(pushDisks(mine, disks), NotOwner)
  t.ok((await restored(mine, next, 'root')).equals(bytes))
  await forget(theirs, key)
  await collect(theirs, { graceMs: 0 })
  t.ok((await restored(theirs, next, 'root')).equals(bytes))
})

t.test('nobody takes over from who is at work, and who was silent too long commits no more', async t => {
  const { target, store, mine, theirs } = await shared()
  await pushDisks(mine, disks)
  const session = await Session.begin(target, { kind: 'writer', epoch: 0 }, { cas: false, beatMs: 0 })
  await t.rejects(takeOver(theirs, { settleMs: 0 }), { name: 'Busy', message: /was at work \d+ s ago; stop it there/ })
  t.match(await ownerOf(theirs), first)
  await session.beat()
  store.now = () => new Date(Date.now() + 3_600_000)
  await takeOver(theirs, { settleMs: 0 })
  await t.rejects(session.change({ state: 'committed' }), SessionExpired)
  t.ok(session.signal.aborted)
})

t.test('of two who take over at once one is told that it has not', async t => {
  const { target, mine, theirs } = await shared()
  await pushDisks(mine, disks)
  const third = await Repository.open(target, { me: { id: 'third', host: 'third.example' } })
  const outcomes = await Promise.allSettled([takeOver(theirs, { settleMs: 50 }), takeOver(third, { settleMs: 50 })])
  t.same(outcomes.map(({ status }) => status).sort(), ['fulfilled', 'rejected'])
  const lost = outcomes.find(({ status }) => status === 'rejected') as PromiseRejectedResult
  t.ok(lost.reason instanceof NotOwner)
})

t.test('a second session of the same host, and a lost reply, are noticed without conditions too', async t => {
  const { target } = await shared()
  const session = await Session.begin(target, { kind: 'writer', epoch: 0 }, { cas: false, beatMs: 0 })
  // The reply to a beat is lost.
  let lost = 1
  target.after = ({ op }) => {
    if (op === 'put' && lost-- > 0) throw new Unavailable('lost')
  }
  await session.beat()
  t.equal(session.record.beat, 1)
  // Somebody else writes its record.
  target.after = () => {}
  await target.put(`sessions/${session.id}`, Buffer.from('{}'))
  await t.rejects(session.beat(), { name: 'SessionExpired', cause: { constructor: PreconditionFailed } })
})

t.test('where conditions are kept there is nothing to take over, and this host has one name', async t => {
  const target = new MemoryTarget()
  await initRepository(target, { cost: CHEAP })
  await t.rejects(takeOver(await Repository.open(target)), { name: 'InvalidParameter', message: /nothing to take over/ })
  t.same(thisHost(), thisHost())
  t.match(thisHost().id, /^[\da-f]{32}$/)
  await pushDisks(await Repository.open(target), disks)
  t.notOk(target.store.objects.has('owner'))
})
