// Every restore point of a random history restores bit for bit: by our restore, over NBD by qemu-img, and by the reader in Python; and when
// only the newest is left, what the repository holds is what that one needs.
//
// HISTORY_RUNS=100 tells that many, HISTORY_STEPS=200 longer ones, STILLPOINT_SEED where to begin, HISTORY_KILLS=1000 how many processes are to be
// killed in all.

import { writeFileSync } from 'node:fs'
import t from 'tap'
import { openTarget } from '../../src/push/target.ts'
import { scratchFolder } from '../helpers/qemu.ts'
import { MemoryTarget } from '../helpers/memory-target.ts'
import { MortalProcesses } from '../helpers/mortal-processes.ts'
import { judge, PATIENCE_MS } from '../helpers/point-judges.ts'
import { RepositoryHistory } from '../helpers/repository-history.ts'
import { silent } from '../helpers/s3.ts'
import { seed as first } from '../helpers/seed.ts'
import { stillpoint } from '../helpers/stillpoint.ts'

const runs = Number(process.env['HISTORY_RUNS'] ?? 1)
const steps = Number(process.env['HISTORY_STEPS'] ?? 30)
const kills = Number(process.env['HISTORY_KILLS'] ?? 6)
/** Of one history. */
const MOST_STEPS = 150

const passphraseOf = (seed: number) => (seed % 2 === 0 ? undefined : 'schlüssel')

for (let seed = first; seed < first + runs; seed++) {
  const passphrase = passphraseOf(seed)
  t.test(
    `whatever happens, and whoever is killed when, every restore point is what it was: ${passphrase ? 'encrypted' : 'plain'}`,
    async t => {
      const target = new MemoryTarget()
      await using history = await RepositoryHistory.begin(target, { seed, passphrase })
      await history.tell(async () => {
        for (let step = 0; step < steps; step++) await history.step()
        const points = await history.checkAll()
        t.comment(`seed ${seed}: ${points.size} restore points after ${history.told.length} events`)
        t.same(await judge(target, [...points].slice(-2), passphrase), [])
        t.same(await history.shrink(), [], 'what is left is what is needed')
      })
    },
  )
}

t.test(
  'processes that are really killed, at any request, take nothing from any restore point, and leave nothing for ever',
  async t => {
    const deaths = new Map<string, number>()
    const count = () => [...deaths.values()].reduce((sum, one) => sum + one, 0)
    for (let seed = first; count() < kills; seed++) {
      const passphrase = passphraseOf(seed)
      await using stack = new AsyncDisposableStack()
      const folder = await scratchFolder(stack)
      const settings = { plugin: 'file', path: `${folder}/repository` }
      const target = stack.use(await openTarget(settings, { log: silent }))
      const doer = stack.use(new MortalProcesses({ target: settings, passphrase }, deaths))
      const history = stack.use(await RepositoryHistory.begin(target, { seed, passphrase, doer, isReal: true }))
      await history.tell(async () => {
        for (let step = 0; step < MOST_STEPS && count() < kills; step++) await history.step()
        const points = await history.checkAll()
        t.same(await judge(target, [...points].slice(-2), passphrase), [])
        t.same(await history.shrink(), [], `seed ${seed}: what is left is what is needed`)
      })
      writeFileSync(`${folder}/key`, passphrase ?? '')
      const encryption = passphrase === undefined ? {} : { encryption: { key: `file:${folder}/key` } }
      writeFileSync(`${folder}/stillpoint.yaml`, JSON.stringify({ repositories: { it: { ...settings, ...encryption } } }))
      const checked = await stillpoint(['repo', 'check', 'it', '--level', 'deep', '--config', `${folder}/stillpoint.yaml`], {
        timeoutMs: PATIENCE_MS,
      })
      t.match(checked, { code: 0, stdout: /all is well/, stderr: '' })
    }
    t.comment(`killed: ${JSON.stringify(Object.fromEntries(deaths))}`)
    t.ok(count() >= kills)
  },
)
