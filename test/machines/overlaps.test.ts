// What a history does one after the other goes on at the same time here: jobs on disks that last over several acts, sessions that are read in
// part and later, slow pushes, a transaction of another client, QMP's own jobs, restarts and kills, while guests write.
//
// STILLPOINT_OVERLAPS=N does N histories, and tells the seed of one that goes wrong; STILLPOINT_SEED does that one, as far as timing lets it.

import t from 'tap'
import { OverlapWorld, type Work } from '../helpers/overlap-world.ts'
import type { QmpClient } from '../../src/control/qmp-client.ts'
import { missing, scratchFolder } from '../helpers/qemu.ts'
import { seed as first } from '../helpers/seed.ts'

const skip = missing('qemu-img')
/** For the suite a short one. */
const STEPS = Number(process.env['STILLPOINT_STEPS'] ?? 20)
const DEEPEST = 4
const KiB = 1024

type Act = (world: OverlapWorld) => Promise<unknown>

const quiet = { writes: false }

const GROUPED = { properties: { 'completion-mode': 'grouped' } }

const speedOf = (world: OverlapWorld) => world.pick([32 * KiB, 128 * KiB, 1024 * KiB, 0])

/** A job on a machine's disk, begun by one of its own commands. */
async function begin(world: OverlapWorld, command: string, kind: string, disk: string, args: object, file?: string) {
  const job = await world.ask<{ job: string }>(command, { machine: 'db', disk, speed: speedOf(world), ...args })
  if (job) world.work.set(disk, { id: job.job, kind, disk, own: false, file, paused: false, aborted: false })
}

const beginnings: Readonly<Record<string, (world: OverlapWorld, disk: string) => Promise<unknown>>> = {
  async copy(world, disk) {
    const shallow = (await world.chainOf(disk)).length > 1 && world.next() % 2 === 0
    const format = shallow || world.next() % 2 === 0 ? 'qcow2' : 'raw'
    const file = world.file(format === 'raw' ? 'img' : 'qcow2')
    const atReady = world.pick(['pivot', 'finish', 'wait'])
    const mode = world.pick(['background', 'write-blocking'])
    const args = { file, shallow, format, 'copy-mode': mode, 'at-ready': atReady }
    await begin(world, 'disk-copy', 'copy', disk, args, atReady === 'wait' ? file : undefined)
  },
  async activeCommit(world, disk) {
    const chain = await world.chainOf(disk)
    if (chain.length < 2) return
    const args = { active: true, pivot: world.next() % 2 === 0, base: world.pick(chain.slice(1)) }
    await begin(world, 'disk-commit', 'active commit', disk, args)
  },
  async commit(world, disk) {
    const chain = await world.chainOf(disk)
    if (chain.length < 3) return
    await begin(world, 'disk-commit', 'commit', disk, { top: chain[1], base: chain.at(-1) })
  },
  async pull(world, disk) {
    const chain = await world.chainOf(disk)
    if (chain.length < 2) return
    await begin(world, 'disk-pull', 'pull', disk, { base: chain.length > 2 && world.next() % 2 === 0 ? chain.at(-1) : undefined })
  },
  async backup(world, disk) {
    const target = await world.target('raw')
    const id = world.name('backup')
    const args = { 'job-id': id, device: await world.nodeOf(disk), target: target.node, sync: 'full', speed: speedOf(world) }
    if (!(await world.ask('blockdev-backup', args, quiet))) return world.ask('blockdev-del', { 'node-name': target.node })
    const held = Buffer.from(world.content.get(disk)!)
    world.work.set(disk, { id, kind: 'backup', disk, own: true, target, held, paused: false, aborted: false })
    return undefined
  },
  async mirror(world, disk) {
    const target = await world.target('qcow2')
    const id = world.name('mirror')
    const mode = world.pick(['background', 'write-blocking'])
    const args = {
      'job-id': id,
      device: await world.nodeOf(disk),
      target: target.node,
      sync: 'full',
      'copy-mode': mode,
      speed: speedOf(world),
    }
    if (!(await world.ask('blockdev-mirror', args))) return world.ask('blockdev-del', { 'node-name': target.node })
    world.work.set(disk, { id, kind: 'mirror', disk, own: true, target, paused: false, aborted: false })
    return undefined
  },
  async ownActiveCommit(world, disk) {
    const chain = await world.chainOf(disk)
    if (chain.length < 2) return
    const id = world.name('active')
    const args = { 'job-id': id, device: await world.nodeOf(disk), base: world.pick(chain.slice(1)), speed: speedOf(world) }
    if (await world.ask('block-commit', args))
      world.work.set(disk, { id, kind: 'active commit', disk, own: true, paused: false, aborted: false })
  },
  async stream(world, disk) {
    const chain = await world.chainOf(disk)
    if (chain.length < 2) return
    const id = world.name('stream')
    const base = chain.length > 2 && world.next() % 2 === 0 ? chain.at(-1) : undefined
    const finalized = world.next() % 2 === 0
    const args = {
      'job-id': id,
      device: await world.nodeOf(disk),
      base,
      speed: speedOf(world),
      'auto-finalize': finalized,
    }
    if (await world.ask('block-stream', args))
      world.work.set(disk, { id, kind: 'stream', disk, own: true, finalized, paused: false, aborted: false })
  },
  async blockCommit(world, disk) {
    const chain = await world.chainOf(disk)
    if (chain.length < 3) return
    const id = world.name('commit')
    const args = { 'job-id': id, device: await world.nodeOf(disk), top: chain[1], base: chain.at(-1), speed: speedOf(world) }
    if (await world.ask('block-commit', args))
      world.work.set(disk, { id, kind: 'commit', disk, own: true, paused: false, aborted: false })
  },
}

async function end(world: OverlapWorld, work: Work, how: 'pivot' | 'abort' | 'run') {
  const wasHurried = how !== 'abort' || world.next() % 2 === 0
  if (wasHurried) await world.hurry(work)
  if (world.work.get(work.disk) !== work) return
  const ready = wasHurried
  if (how === 'abort' || (work.kind === 'mirror' && how === 'run')) {
    for (const each of work.group ?? [work]) each.aborted = true
    const content = world.content.get(work.disk)!
    if (work.own) await world.ask('block-job-cancel', { device: work.id }, quiet)
    else await world.ask('disk-abort', { machine: 'db', disk: work.disk }, quiet)
    if (ready && work.kind === 'mirror') work.held = Buffer.from(content)
    await world.over(work)
    if (ready && work.kind === 'copy' && work.file)
      await world.compareFile(work.file, work.file.endsWith('.img') ? 'raw' : 'qcow2', content, work.id)
  } else {
    if (work.own && world.next() % 2 === 0) await world.ask('job-complete', { id: work.id })
    else if (work.own) await world.ask('block-job-complete', { device: work.id })
    else await world.ask('disk-pivot', { machine: 'db', disk: work.disk })
    await world.over(work)
  }
}

/** Reads all of it, now or in part before. */
async function finish(world: OverlapWorld, abort = false) {
  const session = world.pick(world.sessions)
  world.sessions = world.sessions.filter(one => one !== session)
  if (abort) {
    await world.ask('backup-abort', { name: session.name })
    world.checkpoints = world.checkpoints.filter(({ name }) => name !== session.checkpoint)
    return
  }
  for (const disk of world.disks) await world.readView(session.name, disk, session.held.get(disk)!, session.since)
  await world.ask('backup-finish', { name: session.name })
}

/** A transaction that is open goes with the daemon, or just before. */
async function restart(world: OverlapWorld, signal: NodeJS.Signals) {
  if (world.next() % 2 === 0) await world.hangUp()
  await world.end(signal)
  await world.hangUp()
  await world.checkImages(new Map())
  world.forget()
  await world.start()
}

/** Of a transaction that is open: prepared now, and to happen when it is committed. */
async function step(world: OverlapWorld, by: QmpClient) {
  const { steps, backups } = world.transaction!
  const disk = world.pick(world.disks)
  const node = await world.nodeOf(disk)
  const kind = world.pick(['bitmap', 'snapshot', 'backup'])
  steps.push(kind)
  if (kind === 'bitmap') await world.ask('block-dirty-bitmap-add', { node, name: world.name('bitmap') }, { by })
  else if (kind === 'snapshot') {
    if ((await world.chainOf(disk)).length >= DEEPEST) return
    const overlay = { 'snapshot-file': world.file('qcow2'), 'snapshot-node-name': world.name('overlay'), format: 'qcow2' }
    await world.ask('blockdev-snapshot-sync', { 'node-name': node, ...overlay }, { by })
  } else {
    if (world.work.has(disk) || backups.some(one => one.disk === disk)) return
    const target = await world.target('raw')
    const id = world.name('backup')
    const args = { 'job-id': id, device: node, target: target.node, sync: 'full', speed: speedOf(world) }
    backups.push({ id, kind: 'backup', disk, own: true, target, paused: false, aborted: false })
    await world.ask('blockdev-backup', args, { by })
  }
}

async function endTransaction(world: OverlapWorld, by: QmpClient) {
  const { backups } = world.transaction!
  const committed = world.next() % 3 > 0 && (await world.ask('transaction-commit', {}, { ...quiet, by }))
  if (!committed && (await world.ask('query-transaction', {}, { ...quiet, by }).then(isOpen)))
    await world.ask('transaction-rollback', {}, { ...quiet, by })
  const group = world.transaction!.grouped ? backups : undefined
  for (const work of backups) {
    if (committed) world.work.set(work.disk, Object.assign(work, { group, held: Buffer.from(world.content.get(work.disk)!) }))
    else await world.execute('blockdev-del', { 'node-name': work.target!.node })
  }
  await world.hangUp()
}

const isOpen = (answer: unknown) => ['open', 'failed'].includes((answer as { status: string }).status)

const acts: Readonly<Record<string, Act>> = {
  async write(world) {
    for (let count = 1 + (world.next() % 8); count > 0; count--) await world.write()
  },
  async job(world) {
    const idle = world.disks.filter(disk => !world.work.has(disk))
    if (idle.length === 0) return
    await beginnings[world.pick(Object.keys(beginnings))]!(world, world.pick(idle))
  },
  /** Which is refused, unless the first is over just now. */
  async secondJob(world) {
    if (world.work.size === 0) return
    const disk = world.pick([...world.work.keys()])
    await begin(world, 'disk-copy', 'copy', disk, { file: world.file('qcow2'), format: 'qcow2' })
  },
  async endJob(world) {
    if (world.work.size === 0) return
    await end(world, world.pick([...world.work.values()]), world.pick(['pivot', 'abort', 'run'] as const))
  },
  async hurryJob(world) {
    for (const { id } of world.work.values()) await world.ask('block-job-set-speed', { device: id, speed: 0 })
  },
  async pauseJob(world) {
    if (world.work.size === 0) return
    const work = world.pick([...world.work.values()])
    const verb = work.paused ? 'job-resume' : 'job-pause'
    work.paused = !work.paused
    await world.ask(verb, { id: work.id })
  },
  async beginPull(world) {
    const since = world.checkpoints.length > 0 && world.next() % 3 > 0 ? world.pick(world.checkpoints) : undefined
    const name = world.name('session')
    const checkpoint = world.next() % 2 === 0 ? `c-${name}` : undefined
    if (!(await world.ask('backup-begin', { machine: 'db', mode: 'pull', name, since: since?.name, checkpoint }, quiet))) return
    world.sessions.push({ name, since, checkpoint, held: world.copy() })
    if (checkpoint) world.remember(checkpoint)
  },
  async readPull(world) {
    if (world.sessions.length === 0) return
    const { name, held, since } = world.pick(world.sessions)
    const disk = world.pick(world.disks)
    world.done.push(`   reads ${name}/${disk}`)
    await world.readView(name, disk, held.get(disk)!, since)
  },
  async finishPull(world) {
    if (world.sessions.length > 0) await finish(world)
  },
  async abortPull(world) {
    if (world.sessions.length > 0) await finish(world, true)
  },
  async finishBesideEnd(world) {
    if (world.sessions.length === 0 || world.work.size === 0) return
    const work = world.pick([...world.work.values()])
    await world.ask('block-job-set-speed', { device: work.id, speed: 0 })
    await Promise.all([finish(world, world.next() % 2 === 0), world.writeUntil(world.isOver(work))])
  },
  async push(world) {
    if (world.pushes.length > 0) return
    const name = world.name('push')
    const args = { machine: 'db', mode: 'push', repository: 'local', name, speed: world.pick([1 << 20, 4 << 20, 0]) }
    if (await world.ask('backup-begin', args, quiet)) world.pushes.push({ name, held: world.copy() })
  },
  async abortPush(world) {
    const push = world.pushes.pop()
    if (push) await world.ask('backup-abort', { name: push.name })
  },
  async checkpoint(world) {
    const name = world.name('c')
    if (await world.ask('checkpoint-create', { machine: 'db', name }, quiet)) world.remember(name)
  },
  async deleteCheckpoint(world) {
    if (world.checkpoints.length < 2) return
    const args = { machine: 'db', name: world.pick(world.checkpoints).name, children: world.next() % 4 === 0 }
    const answer = await world.ask<{ deleted: string[] }>('checkpoint-delete', args)
    if (answer) world.checkpoints = world.checkpoints.filter(({ name }) => !answer.deleted.includes(name))
  },
  async snapshot(world) {
    const disks: { disk: string; file: string }[] = []
    for (const disk of world.next() % 2 === 0 ? world.disks : [world.pick(world.disks)])
      if ((await world.chainOf(disk)).length < DEEPEST) disks.push({ disk, file: world.file('qcow2') })
    if (disks.length > 0) await world.ask('disk-snapshot', { machine: 'db', disks })
  },
  async transaction(world) {
    const by = world.transaction?.client
    if (!by) {
      const client = await world.client()
      const grouped = world.next() % 2 === 0
      world.transaction = { client, steps: [], backups: [], grouped }
      await world.ask('transaction-begin', grouped ? GROUPED : {}, { by: client })
      await step(world, client)
      return
    }
    if (world.transaction!.steps.length < 3) await step(world, by)
    if (world.next() % 2 === 0) await endTransaction(world, by)
  },
  async groupOfBackups(world) {
    if (world.disks.some(disk => world.work.has(disk))) return
    const works: Work[] = []
    const actions: object[] = []
    for (const disk of world.disks) {
      const target = await world.target('raw')
      const id = world.name('grouped')
      const data = { 'job-id': id, device: await world.nodeOf(disk), target: target.node, sync: 'full', speed: speedOf(world) }
      actions.push({ type: 'blockdev-backup', data })
      works.push({ id, kind: 'backup', disk, own: true, target, group: works, paused: false, aborted: false })
    }
    const begun = await world.ask('transaction', { actions, ...GROUPED }, quiet)
    for (const work of works) {
      if (begun) world.work.set(work.disk, Object.assign(work, { held: Buffer.from(world.content.get(work.disk)!) }))
      else await world.execute('blockdev-del', { 'node-name': work.target!.node })
    }
  },
  restart: world => restart(world, 'SIGTERM'),
  kill: world => restart(world, 'SIGKILL'),
}

const often = [
  'write',
  'job',
  'job',
  'job',
  'job',
  'endJob',
  'endJob',
  'snapshot',
  'snapshot',
  'beginPull',
  'beginPull',
  'readPull',
  'push',
  'checkpoint',
  'transaction',
  'transaction',
  'groupOfBackups',
  'finishPull',
] as const

/** All that is under way comes to its end, and is right. */
async function settle(world: OverlapWorld) {
  if (world.transaction) await endTransaction(world, world.transaction.client)
  for (const work of world.work.values()) await end(world, work, work.kind === 'copy' ? 'abort' : world.pick(['run', 'pivot']))
  while (world.sessions.length > 0) await finish(world)
  while (world.pushes.length > 0) {
    await world.write()
    await world.lookAtPushes()
  }
  await world.verify()
  const chains = new Map<string, string>()
  for (const disk of world.disks) chains.set(disk, (await world.chainOf(disk))[0]!)
  await world.end('SIGTERM')
  await world.checkImages(chains)
}

/** Chains to work on, and work: while a session is open nothing of this may begin. */
async function deepen(world: OverlapWorld) {
  for (let count = world.next() % DEEPEST; count > 0; count--) {
    await acts['checkpoint']!(world)
    for (let writes = 0; writes < 5; writes++) await world.write()
    await acts['snapshot']!(world)
  }
  for (let count = world.next() % 4; count > 0; count--) await acts['job']!(world)
}

/** What has begun comes to its end now and then, also where acts are few. */
function whatFollows(world: OverlapWorld) {
  if (world.transaction && world.next() % 3 === 0) return 'transaction'
  return world.work.size > 0 && world.next() % 4 === 0 ? 'endJob' : undefined
}

async function overlaps(seed: number) {
  await using stack = new AsyncDisposableStack()
  const world = stack.use(await OverlapWorld.create(await scratchFolder(stack), seed))
  try {
    await deepen(world)
    for (let step = 1; step <= STEPS; step++) {
      const name = whatFollows(world) ?? world.pick([...often, ...Object.keys(acts)])
      world.done.push(`${step}. ${name}`)
      await acts[name]!(world)
      await world.look()
    }
    world.done.push('the end')
    await settle(world)
  } catch (error) {
    const nodes = await world.describe().catch((failed: unknown) => String(failed))
    const what = `seed ${seed}:\n${world.done.join('\n')}\n${(error as Error).message}\n${nodes}\n${world.said}`
    throw new Error(what, { cause: error })
  }
  return world
}

const count = Number(process.env['STILLPOINT_OVERLAPS'] ?? 1)
const seeds = Array.from({ length: count }, (_, index) => first + index)

for (const seed of seeds) {
  t.test(
    `overlaps ${seed}: whatever goes on beside each other, nothing is lost, nothing hangs, and each backup is of its instant`,
    { skip },
    async t => {
      const { done, refused } = await overlaps(seed)
      t.ok(done.includes('the end'))
      for (const act of done) t.comment(act)
      for (const [what, times] of refused) t.comment(`refused ${times}: ${what}`)
    },
  )
}
