// A repository's life on a target, for targets in trouble: two backups, restores, verification, and the collection of what is not needed.

import type { Test } from 'tap'
import { collect } from '../../src/repository/collector.ts'
import { forget } from '../../src/repository/points.ts'
import type { Target } from '../../src/repository/target.ts'
import { verify } from '../../src/repository/verify.ts'
import { done, newRepository, pushDisks, restored, sealer, sourceOf } from './push-point.ts'
import { diskContent, randomBytes } from './random-bytes.ts'

/** `trouble` is made during the second backup. */
export async function liveOn(t: Test, target: Target, seed: number, trouble: () => Promise<void> = async () => {}) {
  const repository = await newRepository(target)
  t.equal(repository.cas, true)
  const size = 60 * 65536
  const first = diskContent(size, seed)
  const second = Buffer.from(first)
  second.set(randomBytes(700_000, seed + 1), 500_000)
  const { key: older } = await pushDisks(repository, [{ name: 'root', source: sourceOf(first) }])
  const [{ key: newer }] = await Promise.all([
    pushDisks(repository, [{ name: 'root', source: sourceOf(second) }], { packSize: 1 << 18 }),
    trouble(),
  ])
  t.ok((await restored(repository, older, 'root')).equals(first))
  t.ok((await restored(repository, newer, 'root')).equals(second))
  const result = await done(verify(repository, { level: 'deep', sealer }))
  t.same([result.damagedPacks, result.damagedPoints], [[], []])
  await forget(repository, older)
  await collect(repository, { graceMs: 0 })
  t.ok((await restored(repository, newer, 'root')).equals(second), 'also when what nobody needs has been collected')
}
