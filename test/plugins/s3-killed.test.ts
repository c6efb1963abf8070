// The S3 target on a store that is killed: Ceph's daemons while a backup writes to it, and its gateway again and again, as well as those who
// work in the repository.
//
// HISTORY_KILLS=1000: so many processes and gateways.

import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { Ceph, cephMissing } from '../helpers/ceph.ts'
import { FaultProxy } from '../helpers/fault-proxy.ts'
import { liveOn } from '../helpers/live-repository.ts'
import { MortalProcesses } from '../helpers/mortal-processes.ts'
import type { Fate } from '../helpers/mortal-target.ts'
import { judge } from '../helpers/point-judges.ts'
import type { Deed, Doer } from '../helpers/repository-deeds.ts'
import { RepositoryHistory } from '../helpers/repository-history.ts'
import { makeBucket, openS3, settingsFor } from '../helpers/s3.ts'
import { seed as first } from '../helpers/seed.ts'

if (cephMissing) {
  t.plan(0, cephMissing)
  process.exit()
}
const ceph = await Ceph.launch({ onDisk: true })
t.teardown(() => ceph[Symbol.asyncDispose]())
await makeBucket(ceph.endpoint, 'bucket')

t.test(
  'a backup goes on when the store is killed in its midst and comes back, and nothing of it is lost; who does not wait so long hears why',
  async t => {
    await using target = await openS3(ceph.endpoint, 'bucket', { prefix: 'live' })
    await using hasty = await openS3(ceph.endpoint, 'bucket', { prefix: 'live', retry: '300ms' })
    await target.put('before', Buffer.from('kept'))
    await liveOn(t, target, 1, async () => {
      await sleep(200)
      await ceph.kill()
      const reason = { name: 'Unreachable', message: /nobody listens there.*is the endpoint right, the store up/ }
      await t.rejects(hasty.get('before'), reason)
      await ceph.start()
    })
    t.equal(String((await hasty.get('before')).body), 'kept')
  },
)

/** Where a process is to find the store away, the gateway is killed as it gets that request, and starts again. */
class WithGateway implements Doer {
  kills = 0

  constructor(
    private readonly processes: MortalProcesses,
    private readonly proxy: FaultProxy,
  ) {}

  async do(deed: Deed, fate: Fate | undefined) {
    if (!fate || 'dies' in fate) return this.processes.do(deed, fate)
    let left = fate.at
    let again: Promise<void> | undefined
    this.proxy.mishap = () => {
      if (left-- === 0) again = this.#killGateway()
      return undefined
    }
    const outcome = await this.processes.do(deed, undefined)
    this.proxy.mishap = () => undefined
    await again
    return outcome
  }

  async #killGateway() {
    this.kills++
    await ceph.kill(['rgw'])
    await ceph.start(['rgw'])
  }
}

t.test('whoever is killed, those who work in a repository or its gateway, every restore point is what it was', async t => {
  const kills = Number(process.env['HISTORY_KILLS'] ?? 4)
  const deaths = new Map<string, number>()
  let gateways = 0
  const count = () => [...deaths.values()].reduce((sum, one) => sum + one, gateways)
  for (let seed = first; count() < kills; seed++) {
    await using stack = new AsyncDisposableStack()
    const proxy = stack.use(await FaultProxy.before(ceph.port))
    const prefix = `history-${seed}`
    const settings = { plugin: 's3', ...settingsFor(proxy.endpoint, 'bucket', { prefix }) }
    const target = stack.use(await openS3(ceph.endpoint, 'bucket', { prefix }))
    const processes = stack.use(new MortalProcesses({ target: settings, passphrase: undefined }, deaths))
    const doer = new WithGateway(processes, proxy)
    const before = gateways
    const history = stack.use(await RepositoryHistory.begin(target, { seed, doer, isReal: true }))
    await history.tell(async () => {
      for (let step = 0; step < 100 && count() < kills; step++) {
        await history.step()
        gateways = before + doer.kills
      }
      const points = await history.checkAll()
      t.same(await judge(target, [...points].slice(-1), undefined), [])
      t.same(await history.shrink(), [], `seed ${seed}: what is left is what is needed`)
    })
  }
  t.comment(`killed: ${JSON.stringify(Object.fromEntries(deaths))}, and the gateway ${gateways} times`)
  t.ok(count() >= kills)
})
