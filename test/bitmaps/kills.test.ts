// The daemon is killed under load: every write that was answered is there, and every granule that has changed is marked.

import t from 'tap'
import { killRepeatedly } from '../helpers/kill-daemon.ts'
import { seed } from '../helpers/seed.ts'
import { missing } from '../helpers/tools.ts'

for (const [format, wanted] of [
  ['qcow2', 3],
  ['raw', 2],
] as const)
  t.test(`a daemon that is killed loses no mark and no write: ${format}`, { skip: missing('qemu-img') }, async t => {
    await using stack = new AsyncDisposableStack()
    const { wrong, kills, answeredWrites, changed } = await killRepeatedly(stack, { kills: wanted, seed, format })
    t.same(wrong, [])
    t.equal(kills, wanted)
    t.ok(answeredWrites > 0 && changed > 0, `${answeredWrites} writes were answered, and ${changed} granules had changed`)
  })
