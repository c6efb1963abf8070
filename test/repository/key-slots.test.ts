// The keys of an encrypted repository: any of its slots opens it, and nobody is locked out by a slip.

import t from 'tap'
import { Busy, InvalidParameter, NotFound } from '../../src/base/errors.ts'
import { WrongKey } from '../../src/repository/faults.ts'
import { addPassphrase, changePassphrase, findSlot, removeSlot, slotsOf } from '../../src/repository/key-slots.ts'
import { initRepository } from '../../src/repository/repository-file.ts'
import { Repository } from '../../src/repository/repository.ts'
import { MemoryTarget } from '../helpers/memory-target.ts'
import { CHEAP, pushDisks, restored, sourceOf } from '../helpers/push-point.ts'
import { diskContent } from '../helpers/random-bytes.ts'

async function keyed(passphrase = 'one') {
  const target = new MemoryTarget()
  const file = await initRepository(target, { passphrase, cost: CHEAP, chunkSize: 65536 })
  const by = (other: string) => ({ target, file, passphrase: other })
  const opens = (other: string) =>
    Repository.open(target, { passphrase: other }).then(
      () => true,
      (error: unknown) => (t.type(error, WrongKey), false),
    )
  return { target, file, by, opens }
}

t.test('any slot opens the repository, and what was written before', async t => {
  const { target, by, opens } = await keyed()
  const bytes = diskContent(4 * 65536, 1)
  const { key } = await pushDisks(await Repository.open(target, { passphrase: 'one' }), [{ name: 'd', source: sourceOf(bytes) }])
  await addPassphrase(by('one'), 'two', { cost: CHEAP, label: 'for the safe' })
  await t.rejects(addPassphrase(by('three'), 'four', { cost: CHEAP }), WrongKey)
  await t.rejects(addPassphrase(by('one'), '', { cost: CHEAP }), InvalidParameter)
  t.same(
    (await slotsOf(by('two'))).map(({ label, opens }) => ({ label, opens })),
    [
      { label: undefined, opens: false },
      { label: 'for the safe', opens: true },
    ],
  )
  await removeSlot(by('two'), (await slotsOf(by('one'))).find(slot => slot.opens)!.key)
  t.same([await opens('one'), await opens('two')], [false, true])
  t.ok((await restored(await Repository.open(target, { passphrase: 'two' }), key, 'd')).equals(bytes))
})

t.test('neither the last slot goes nor the only one that one’s own key opens', async t => {
  const { by, opens } = await keyed()
  const [only] = await slotsOf(by('one'))
  await t.rejects(removeSlot(by('one'), only!.key), /last/)
  const second = await addPassphrase(by('one'), 'two', { cost: CHEAP })
  await t.rejects(removeSlot(by('one'), only!.key), /only slot that the key of the configuration opens/)
  await removeSlot(by('one'), second)
  t.same([await opens('one'), await opens('two')], [true, false])
  await t.rejects(removeSlot(by('one'), second), NotFound)
})

t.test('of two who each take the other one’s slot away at once one finds its own again', async t => {
  const { target, by, opens } = await keyed()
  const one = (await slotsOf(by('one')))[0]!.key
  const two = await addPassphrase(by('one'), 'two', { cost: CHEAP })
  // Two is faster, just before one deletes.
  target.before = async ({ op, key }) => {
    if (op !== 'delete' || key !== two) return
    target.before = () => {}
    await removeSlot(by('two'), one)
  }
  await t.rejects(removeSlot(by('one'), two), Busy)
  t.same([await opens('one'), await opens('two')], [false, true])
})

t.test('a change adds before it removes, so that a crash in between locks nobody out', async t => {
  const { target, by, opens } = await keyed()
  await addPassphrase(by('one'), 'spare', { cost: CHEAP })
  target.before = ({ op }) => {
    if (op === 'delete') throw new Error('the power is gone')
  }
  await t.rejects(changePassphrase(by('one'), 'new', { cost: CHEAP }), /power/)
  t.same([await opens('one'), await opens('new')], [true, true])
  target.before = () => {}
  await t.rejects(changePassphrase(by('one'), 'one', { cost: CHEAP }), InvalidParameter)
  // Done again it goes on with the slot that is there; and all slots of a key go with it, of which there may be two.
  t.match(await changePassphrase(by('one'), 'new', { cost: CHEAP }), { isNew: false, removed: { length: 1 } })
  t.equal((await slotsOf(by('new'))).length, 2)
  await addPassphrase(by('new'), 'new', { cost: CHEAP })
  await changePassphrase(by('new'), 'newer', { cost: CHEAP, label: 'me' })
  t.same([await opens('one'), await opens('new'), await opens('newer'), await opens('spare')], [false, false, true, true])
  t.match(
    (await slotsOf(by('newer'))).find(slot => slot.opens),
    { label: 'me' },
  )
})

t.test('a slot that is damaged is shown and may go, and does no harm to the others', async t => {
  const { target, by, opens } = await keyed()
  target.store.set('keys/00000000-0000-4000-8000-000000000000', Buffer.from('{"kdf":"scrypt"}'))
  t.ok(await opens('one'))
  t.match(await slotsOf(by('one')), [{ damaged: true }, { opens: true, damaged: false }])
  await t.rejects(
    Repository.open(target, { passphrase: 'wrong' }),
    { name: 'Damaged', message: /opens no slot, and one is damaged: keys\/0000.*; try another key of the repository, or bring/ },
    'perhaps the damaged one was this key’s',
  )
  const damaged = await findSlot(by('one'), '00000000')
  await t.rejects(findSlot(by('one'), ''), NotFound, 'more than one')
  await removeSlot(by('one'), damaged)
  t.equal((await slotsOf(by('one'))).length, 1)
  for (const { key } of await slotsOf(by('one'))) await target.delete([key])
  await t.rejects(Repository.open(target, { passphrase: 'one' }), {
    name: 'Damaged',
    message: /its key slots \(keys\/\) are gone/,
  })
})

t.test('a repository that is not encrypted has no keys', async t => {
  const target = new MemoryTarget()
  const file = await initRepository(target)
  await t.rejects(slotsOf({ target, file, passphrase: undefined }), InvalidParameter)
  await t.rejects(addPassphrase({ target, file, passphrase: 'x' }, 'y'), InvalidParameter)
})
