// A daemon that is killed in the midst of what a schedule has begun, at any request to the store.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { FileTarget } from '../../plugins/file/file-target.ts'
import type { ScheduleInfo } from '../../src/control/commands/query-schedules.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { verify } from '../../src/repository/verify.ts'
import type { Run } from '../../src/scheduler/schedule-state.ts'
import { scratchFolder } from '../helpers/control.ts'
import { mortalPlugin, type Death } from '../helpers/mortal-store.ts'
import { judge } from '../helpers/point-judges.ts'
import { done, sealer } from '../helpers/push-point.ts'
import { generator, randomBytes } from '../helpers/random-bytes.ts'
import { open } from '../helpers/repository-deeds.ts'
import { seed } from '../helpers/seed.ts'
import { stillpoint, WHOLE } from '../helpers/stillpoint.ts'

const SIZE = 6 << 20
const KILLS = 2
/** A push of an increment makes about so many requests. */
const REQUESTS = 18

const info = async (qmp: QmpClient) => ((await qmp.execute('query-schedules', { name: 'nightly' })) as ScheduleInfo[])[0]!

t.test('a daemon is killed at some request of a scheduled push; the next run completes, and what it holds is right', async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const path = (name: string) => join(folder, name)
  const [config, socket, image, death] = [path('s.json'), path('control.sock'), path('root.raw'), path('death')] as const
  const next = generator(seed)
  writeFileSync(image, randomBytes(SIZE, next()))
  const settings = {
    state: path('state'),
    control: { socket },
    nbd: [{ unix: path('nbd.sock') }],
    machines: { db: { disks: { root: { image, format: 'raw' } } } },
    repositories: { local: { plugin: await mortalPlugin(folder), path: path('backup'), death } },
    schedules: { nightly: { machines: ['db'], repository: 'local', retries: 0 } },
  }
  writeFileSync(config, JSON.stringify(settings))
  t.match(await stillpoint(['repo', 'init', 'local', '--config', config]), { code: 0 })

  const start = async () => {
    const child = spawn(process.execPath, [WHOLE, 'daemon', '--log-level', 'error', '--config', config], {
      stdio: ['ignore', 'ignore', 'inherit'],
    })
    const exit = once(child, 'exit')
    stack.defer(() => void child.kill('SIGKILL'))
    for (;;) {
      if (child.exitCode !== null) throw new Error(`the daemon has ended: ${child.exitCode}`)
      const [connected] = await Promise.allSettled([QmpClient.connect(socket)])
      if (connected.status === 'fulfilled') return { child, exit, qmp: connected.value }
      await sleep(20)
    }
  }
  const guestWrites = async () => {
    await using guest = await NbdClient.connect(`nbd+unix:///db/root?socket=${path('nbd.sock')}`)
    for (let count = 0; count < 4; count++) await guest.write(next() % (SIZE - (256 << 10)), randomBytes(256 << 10, next()))
    await guest.flush()
  }
  /** Until it has ended; undefined where the daemon has. */
  const run = async ({ qmp, exit }: Awaited<ReturnType<typeof start>>): Promise<Run | undefined> => {
    const dead = exit.then(() => undefined)
    const { id } = (await qmp.execute('schedule-run', { name: 'nightly' })) as Run
    for (;;) {
      const now = await Promise.race([info(qmp).catch(() => dead), dead])
      const ended = now?.runs.find(run => run.id === id)
      if (!now || ended) return ended
      await sleep(20)
    }
  }

  let daemon = await start()
  t.match(await run(daemon), { outcome: 'done' })
  const last = new Map<string, Map<string, Buffer>>()
  for (let kill = 0; kill < KILLS; kill++) {
    await guestWrites()
    const fate: Death = {
      at: Math.floor((kill * REQUESTS) / KILLS) + (next() % (REQUESTS / KILLS)),
      when: next() % 2 ? 'after' : 'before',
    }
    const what = `seed ${seed}, killed ${fate.when} request ${fate.at}`
    writeFileSync(death, JSON.stringify(fate))
    t.equal(await run(daemon), undefined, what)
    t.same(await daemon.exit, [null, 'SIGKILL'])
    t.notOk(existsSync(death))
    daemon = await start()
    t.match((await info(daemon.qmp)).runs.at(-1), { outcome: 'interrupted' }, what)
    await guestWrites()
    const after = await run(daemon)
    t.match(after, { outcome: 'done' }, what)
    last.clear()
    last.set(`points/${after!.machines[0]!.point}`, new Map([['root', readFileSync(image)]]))
  }
  daemon.child.kill('SIGTERM')
  t.same(await daemon.exit, [0, null])

  await using target = await FileTarget.open(path('backup'))
  const { damagedPacks, damagedPoints } = await done(verify(await open(target, undefined), { level: 'deep', sealer }))
  t.same([damagedPacks, damagedPoints], [[], []])
  t.same(await judge(target, last, undefined), [])
})
