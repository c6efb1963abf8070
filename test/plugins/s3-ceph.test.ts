// The S3 target on a real store, Ceph's radosgw: the conformance suite, and what the store is asked for beside it.

import t from 'tap'
import { Ceph, cephMissing } from '../helpers/ceph.ts'
import { makeBucket, openS3 } from '../helpers/s3.ts'
import { targetSuite } from '../helpers/target-suite.ts'

if (cephMissing) t.plan(0, cephMissing)
else {
  const ceph = await Ceph.launch()
  t.teardown(() => ceph[Symbol.asyncDispose]())
  await makeBucket(ceph.endpoint, 'suite')
  targetSuite(t, 's3 on Ceph', async stack => stack.use(await openS3(ceph.endpoint, 'suite', { prefix: 'a prefix/' })), {
    many: 1200,
  })
}
