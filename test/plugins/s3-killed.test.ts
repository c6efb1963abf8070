// The S3 target on a store that is killed: all of Ceph's daemons, with its data on disk, while a backup writes to it.

import t from 'tap'
import { Ceph, cephMissing } from '../helpers/ceph.ts'
import { liveOn } from '../helpers/live-repository.ts'
import { makeBucket, openS3 } from '../helpers/s3.ts'

t.test(
  'a backup goes on when the store is killed in its midst and comes back, and nothing of it is lost',
  { skip: cephMissing },
  async t => {
    await using ceph = await Ceph.launch({ onDisk: true })
    await makeBucket(ceph.endpoint, 'bucket')
    await using target = await openS3(ceph.endpoint, 'bucket')
    await target.put('before', Buffer.from('kept'))
    await liveOn(t, target, 1, async () => {
      await new Promise(resolve => setTimeout(resolve, 200))
      await ceph.kill()
      await ceph.start()
    })
    t.equal(String((await target.get('before')).body), 'kept')
  },
)

t.test('while the store is away requests wait, and say why once their time is up', { skip: cephMissing }, async t => {
  await using ceph = await Ceph.launch()
  await makeBucket(ceph.endpoint, 'bucket')
  await using patient = await openS3(ceph.endpoint, 'bucket')
  await using hasty = await openS3(ceph.endpoint, 'bucket', { retry: '300ms' })
  await ceph.kill(['rgw'])
  const waiting = patient.put('key', Buffer.from('x'), { ifAbsent: true })
  await t.rejects(hasty.get('key'), { name: 'Unreachable', message: /nobody listens there.*is the endpoint right, the store up/ })
  await ceph.start(['rgw'])
  t.ok((await waiting).tag)
  t.equal(String((await hasty.get('key')).body), 'x')
})
