// Where the clusters of a frozen view stand, for threads that read them by themselves. (That what they read is the instant's, whatever is written
// meanwhile, is a part of copy-before-write.test.ts.)

import t from 'tap'
import { IoError } from '../../src/base/errors.ts'
import { CLUSTER, cluster, frozenMemory } from '../helpers/frozen-memory.ts'

t.test('a thread reads by itself what waits, and not what is copied, outside, or in a view that is lost', async t => {
  const { source, filter, view } = await frozenMemory()
  t.equal(view.readPlace?.(cluster(1, 2))?.at, CLUSTER)
  const before = view.readPlace!(cluster(2))!
  await filter.write(2 * CLUSTER, Buffer.alloc(1))
  t.notOk(before.isGood())
  t.notOk(view.readPlace?.(cluster(2)))
  t.notOk(view.readPlace?.(cluster(1, 2)), 'a part of it is copied')
  t.ok(view.readPlace?.(cluster(3)))
  await view.discard(cluster(3))
  t.notOk(view.readPlace?.(cluster(3)))
  const last = view.readPlace!(cluster(4))!
  source.read = async () => {
    throw new IoError('it does not read')
  }
  await filter.write(5 * CLUSTER, Buffer.alloc(1))
  t.notOk(last.isGood(), 'the view is lost')
  t.notOk(view.readPlace?.(cluster(4)))
})
