// The S3 target on a store that is killed: all of Ceph's daemons, with its data on disk, while a backup writes to it.

import t from 'tap'
import { Ceph, cephMissing } from '../helpers/ceph.ts'
import { liveOn } from '../helpers/live-repository.ts'
import { makeBucket, openS3 } from '../helpers/s3.ts'

t.test(
  'a backup goes on when the store is killed in its midst and comes back, and nothing of it is lost; who does not wait so long hears why',
  { skip: cephMissing },
  async t => {
    await using ceph = await Ceph.launch({ onDisk: true })
    await makeBucket(ceph.endpoint, 'bucket')
    await using target = await openS3(ceph.endpoint, 'bucket')
    await using hasty = await openS3(ceph.endpoint, 'bucket', { retry: '300ms' })
    await target.put('before', Buffer.from('kept'))
    await liveOn(t, target, 1, async () => {
      await new Promise(resolve => setTimeout(resolve, 200))
      await ceph.kill()
      const reason = { name: 'Unreachable', message: /nobody listens there.*is the endpoint right, the store up/ }
      await t.rejects(hasty.get('before'), reason)
      await ceph.start()
    })
    t.equal(String((await hasty.get('before')).body), 'kept')
  },
)
