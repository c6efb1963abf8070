// Days of an appliance in seconds, with a daemon that is killed at random; STILLPOINT_DAYS=MINUTES lives as long.

import t from 'tap'
import { seed } from '../helpers/seed.ts'
import { missing } from '../helpers/tools.ts'
import { liveDays } from '../helpers/simulated-days.ts'

const minutes = Number(process.env['STILLPOINT_DAYS'] ?? 0)

t.test(
  'however often the daemon is killed, every run that was due is done or explained, and every restore point is good',
  { skip: missing('qemu-img'), timeout: (minutes + 4) * 60_000 },
  async t => {
    await using stack = new AsyncDisposableStack()
    const results = await liveDays(stack, { seed, steps: 6, realMs: minutes * 60_000 })
    t.comment(JSON.stringify({ seed, ...results }))
    t.same(results.wrong, [])
    t.ok(results.kills >= 2 && results.points >= 2)
  },
)
