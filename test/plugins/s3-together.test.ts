// One bucket on a real store, and everybody at once: two daemons back up into it, a third prunes and collects, a fourth serves a restore point.

import { writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { Appliance } from '../../src/appliance.ts'
import { Busy } from '../../src/base/errors.ts'
import { servePoint } from '../../src/cli/serve-point.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { collect, type CollectOptions } from '../../src/repository/collector.ts'
import { prune } from '../../src/repository/prune.ts'
import { Repository } from '../../src/repository/repository.ts'
import type { Target } from '../../src/repository/target.ts'
import { verify } from '../../src/repository/verify.ts'
import { parseSettings } from '../../src/settings/load.ts'
import { Ceph, cephMissing } from '../helpers/ceph.ts'
import { scratchFolder } from '../helpers/qemu.ts'
import { done, newRepository, restored, sealer } from '../helpers/push-point.ts'
import { diskContent, generator, randomBytes } from '../helpers/random-bytes.ts'
import { makeBucket, openS3, settingsFor, silent } from '../helpers/s3.ts'

const CHUNK = 65536
const SIZE = 48 * CHUNK
const PUSHES = 3

interface Session {
  readonly name: string
  readonly status: string
  readonly reason?: string
  readonly point?: string
}

/** A daemon with a machine of that name, and a guest of it that writes between pushes. */
async function startDaemon(stack: AsyncDisposableStack, endpoint: string, machine: string, seed: number) {
  const folder = await scratchFolder(stack)
  const model = diskContent(SIZE, seed)
  writeFileSync(`${folder}/root.raw`, model)
  const settings = {
    state: './state',
    control: { socket: './control.sock' },
    nbd: [{ unix: './nbd.sock' }],
    machines: { [machine]: { disks: { root: { image: './root.raw', format: 'raw' } } } },
    repositories: { bucket: { plugin: 's3', ...settingsFor(endpoint, 'bucket') } },
  }
  const parsed = parseSettings(Buffer.from(JSON.stringify(settings)), `${folder}/stillpoint.yaml`)
  stack.use(await Appliance.start(parsed, silent))
  const qmp = stack.use(await QmpClient.connect(`${folder}/control.sock`))
  const guest = stack.use(await NbdClient.connect(`nbd+unix:///${machine}/root?socket=${folder}/nbd.sock`))
  const next = generator(seed)
  return {
    async write(length = 12 * CHUNK) {
      const bytes = randomBytes(length, next())
      const offset = next() % (SIZE - length + 1)
      model.set(bytes, offset)
      await guest.write(offset, bytes)
    },
    /** The restore point's key, and what the disk held. */
    async push(): Promise<readonly [string, Buffer]> {
      const content = Buffer.from(model)
      const wanted = { machine, mode: 'push', repository: 'bucket' }
      const { name } = (await qmp.execute('backup-begin', wanted)) as Session
      for (;;) {
        const [session] = (await qmp.execute('query-backups', { name })) as [Session]
        if (session.status === 'failed') throw new Error(`a push of ${machine} has failed: ${session.reason}`)
        if (session.status === 'finished') return [`points/${session.point}`, content]
        await sleep(20)
      }
    },
  }
}

const packsOf = async (target: Target) => (await Array.fromAsync(target.list('packs/'))).length

/** As it may be run at any time; who was faster, or does not end soon enough, is no failure. */
async function collected(repository: Repository, options: CollectOptions) {
  try {
    return (await collect(repository, options)).state
  } catch (error) {
    if (error instanceof Busy) return 'busy'
    throw error
  }
}

t.test(
  'two daemons back up into a bucket while a third prunes and collects and a fourth serves a point: nothing is lost, and it shrinks to what is live',
  { skip: cephMissing },
  async t => {
    await using stack = new AsyncDisposableStack()
    const ceph = stack.use(await Ceph.launch())
    await makeBucket(ceph.endpoint, 'bucket')
    const target = stack.use(await openS3(ceph.endpoint, 'bucket'))
    await newRepository(target)
    const machines = ['ann', 'bob']
    const daemons = await Promise.all(machines.map((name, index) => startDaemon(stack, ceph.endpoint, name, index + 1)))
    const points = new Map<string, Buffer>()
    const [served, content] = await daemons[0]!.push()
    points.set(served, content)

    const another = async () => Repository.open(stack.use(await openS3(ceph.endpoint, 'bucket')))
    const unix = `${await scratchFolder(stack)}/served.sock`
    const server = await servePoint(await another(), { point: served, disk: undefined, unix })
    const client = await NbdClient.connect(`nbd+unix:///root?socket=${unix}`)

    let over = false
    const writers = daemons.map(async daemon => {
      for (let count = 0; count < PUSHES; count++) {
        // All of it in the end, so that nothing of what was before is live then.
        await daemon.write(count === PUSHES - 1 ? SIZE : undefined)
        points.set(...(await daemon.push()))
      }
    })
    const keeper = async () => {
      const repository = await another()
      const told: string[] = []
      // One round at least begins when all the others are over.
      for (let last = false; !last;) {
        last = over
        for (const machine of machines) await prune(repository, machine, { last: 2 })
        told.push(await collected(repository, { graceMs: 0, pollMs: 50 }))
      }
      return told
    }
    const reader = async () => {
      const next = generator(7)
      let reads = 0
      for (; !over; reads++) {
        const length = 1 + (next() % (4 * CHUNK))
        const offset = next() % (SIZE - length)
        const found = await client.read(offset, length)
        if (!found.equals(content.subarray(offset, offset + length))) throw new Error(`${length} bytes at ${offset} are wrong`)
      }
      return reads
    }
    const everybody = Promise.all([keeper(), reader()])
    try {
      await Promise.all(writers)
    } finally {
      over = true
    }
    const [told, reads] = await everybody
    t.comment(`${told.join(' ')}; ${reads} reads of what was served`)

    const repository = await Repository.open(target)
    const there = async () => (await Array.fromAsync(repository.points())).map(({ key }) => key)
    const kept = await there()
    t.ok(kept.includes(served), 'what is served is not forgotten')
    t.equal(kept.length, 5, 'and of each machine the last two stay')
    for (const key of kept) t.ok((await restored(repository, key, 'root')).equals(points.get(key)!), key)
    t.ok((await client.read(0, SIZE)).equals(content), 'what is served is all there')
    await client[Symbol.asyncDispose]()
    await server[Symbol.asyncDispose]()

    const before = await packsOf(target)
    for (const machine of machines) await prune(repository, machine, { last: 1 })
    while ((await collected(repository, { graceMs: 0, pollMs: 50 })) !== 'nothing') await sleep(10)
    const live = await there()
    t.equal(live.length, 2)
    for (const key of live) t.ok((await restored(repository, key, 'root')).equals(points.get(key)!), key)
    t.ok(before > 2)
    t.equal(await packsOf(target), 2, 'a pack for each')
    const { damagedPacks, damagedPoints } = await done(verify(repository, { level: 'deep', sealer }))
    t.same([damagedPacks, damagedPoints], [[], []])
    t.same(await Array.fromAsync(target.list('sessions/')), [], 'nobody has left a session')
  },
)
