// The whole history of a machine against a model that knows every block at every checkpoint: writes, checkpoints, snapshots, commits, pulls,
// copies, backups, failures, restarts and kills, in any order.
//
// STILLPOINT_HISTORY=N does N histories, and tells the seed of one that goes wrong; STILLPOINT_SEED does that one.

import t from 'tap'
import { HistoryWorld } from '../helpers/history-world.ts'
import { missing, scratchFolder } from '../helpers/qemu.ts'
import { seed as first } from '../helpers/seed.ts'

const skip = missing('qemu-img')
/** For the suite a short one; the others are as long as they have to be. */
const STEPS = Number(process.env['STILLPOINT_STEPS'] ?? 16)
/** Images above each other, at most. */
const DEEPEST = 4

type Act = (world: HistoryWorld) => Promise<string>

/** Writes while it goes on, and what came of it. */
async function begin(world: HistoryWorld, command: string, args: object, disk: string) {
  await world.execute(command, { machine: 'db', disk, ...args })
  const { error } = await world.jobOver(disk)
  if (error !== undefined) throw new Error(`${command} of ${disk}: ${error}`)
  return `${command} ${disk} ${JSON.stringify(args)}`
}

const acts: Readonly<Record<string, Act>> = {
  async write(world) {
    for (let count = 1 + (world.next() % 5); count > 0; count--) await world.write()
    return 'writes'
  },
  async checkpoint(world) {
    await world.checkpoint()
    return 'checkpoint'
  },
  async pullWithCheckpoint(world) {
    const since = world.checkpoints.length > 0 ? world.pick(world.checkpoints) : undefined
    const name = `c-pull-${world.done.length}`
    const held = await world.pull(since, name)
    world.checkpoints.push({ name, held })
    return `pull since ${since?.name} with checkpoint ${name}`
  },
  async deleteCheckpoint(world) {
    if (world.checkpoints.length < 2) return 'nothing to delete'
    const at = world.next() % world.checkpoints.length
    const { name } = world.checkpoints[at]!
    const children = world.next() % 4 === 0
    const { deleted } = await world.execute<{ deleted: string[] }>('checkpoint-delete', { machine: 'db', name, children })
    world.checkpoints = world.checkpoints.filter(one => !deleted.includes(one.name))
    return `delete ${deleted.join()}`
  },
  async abortedPull(world) {
    const name = `aborted${world.done.length}`
    await world.execute('backup-begin', { machine: 'db', mode: 'pull', name, checkpoint: `c-${name}` })
    await world.write()
    await world.execute('backup-abort', { name })
    return 'a pull that is aborted'
  },
  async push(world) {
    await world.push()
    return 'push'
  },
  async snapshot(world) {
    const disks: { disk: string; file: string }[] = []
    for (const disk of world.next() % 2 === 0 ? world.disks : [world.pick(world.disks)])
      if ((await world.chainOf(disk)).length < DEEPEST) disks.push({ disk, file: world.file('qcow2') })
    if (disks.length === 0) return 'deep enough'
    await world.execute('disk-snapshot', { machine: 'db', disks })
    return `snapshot of ${disks.map(({ disk }) => disk).join()}`
  },
  async snapshotThatFails(world) {
    const [first, second] = world.disks
    const there = (await world.chainOf(second!))[0]!
    const disks = [
      { disk: first!, file: world.file('qcow2') },
      { disk: second!, file: there },
    ]
    try {
      await world.execute('disk-snapshot', { machine: 'db', disks })
    } catch (error) {
      return `no snapshot: ${(error as Error).message}`
    }
    throw new Error(`a snapshot to ${there}, which is there, was made`)
  },
  async activeCommit(world) {
    const disk = world.pick(world.disks)
    const chain = await world.chainOf(disk)
    if (chain.length < 2) return 'nothing to commit'
    return begin(world, 'disk-commit', { active: true, pivot: true, base: world.pick(chain.slice(1)) }, disk)
  },
  async commit(world) {
    const disk = world.pick(world.disks)
    const chain = await world.chainOf(disk)
    if (chain.length < 3) return 'nothing to commit in the middle'
    return begin(world, 'disk-commit', { top: chain[1], base: chain.at(-1) }, disk)
  },
  async pullChain(world) {
    const disk = world.pick(world.disks)
    const chain = await world.chainOf(disk)
    if (chain.length < 2) return 'nothing to pull'
    const base = chain.length > 2 && world.next() % 2 === 0 ? chain.at(-1) : undefined
    return begin(world, 'disk-pull', { base }, disk)
  },
  async copy(world) {
    const disk = world.pick(world.disks)
    const shallow = (await world.chainOf(disk)).length > 1 && world.next() % 2 === 0
    const format = shallow || world.next() % 2 === 0 ? 'qcow2' : 'raw'
    const file = world.file(format === 'raw' ? 'img' : 'qcow2')
    const mode = world.next() % 2 === 0 ? 'background' : 'write-blocking'
    return begin(
      world,
      'disk-copy',
      { file, shallow, format, 'copy-mode': mode, 'at-ready': world.pick(['pivot', 'finish']) },
      disk,
    )
  },
  async abortedCopy(world) {
    const disk = world.pick(world.disks)
    await world.execute('disk-copy', { machine: 'db', disk, file: world.file('qcow2'), format: 'qcow2' })
    if (world.next() % 2 === 0) await world.jobOver(disk, 'ready')
    await world.execute('disk-abort', { machine: 'db', disk })
    return 'a copy that is aborted'
  },
  async restart(world) {
    await endAndCheck(world, 'SIGTERM')
    await world.start()
    return 'restart'
  },
  async kill(world) {
    await endAndCheck(world, 'SIGKILL')
    await world.start()
    return 'kill'
  },
  async killInTheMiddle(world) {
    const disk = world.pick(world.disks)
    const chain = await world.chainOf(disk)
    const [command, args] =
      chain.length > 1
        ? world.pick([
            ['disk-commit', { active: true, pivot: true }],
            ['disk-pull', {}],
          ] as const)
        : (['disk-copy', { file: world.file('qcow2'), format: 'qcow2', 'at-ready': 'pivot' }] as const)
    await world.execute(command, { machine: 'db', disk, ...args, speed: 4 << 20 })
    for (let count = world.next() % 6; count > 0; count--) await world.write()
    await world.end('SIGKILL')
    await world.start()
    return `kill during ${command} of ${disk}`
  },
}

async function endAndCheck(world: HistoryWorld, signal: NodeJS.Signals) {
  const chains = new Map<string, string>()
  for (const disk of world.disks) chains.set(disk, (await world.chainOf(disk))[0]!)
  await world.end(signal)
  await world.checkImages(chains)
}

const often = ['write', 'write', 'write', 'checkpoint', 'checkpoint', 'snapshot', 'snapshot', 'activeCommit', 'copy'] as const

async function history(seed: number) {
  await using stack = new AsyncDisposableStack()
  const world = stack.use(await HistoryWorld.create(await scratchFolder(stack), seed))
  try {
    for (let step = 0; step < STEPS; step++) {
      const name = world.pick([...often, ...Object.keys(acts)])
      world.done.push(`${step + 1}. ${name} ...`)
      world.done[step] = `${step + 1}. ${await acts[name]!(world)}`
      await world.verify()
    }
    await endAndCheck(world, 'SIGTERM')
  } catch (error) {
    const what = `seed ${seed}:\n${world.done.join('\n')}\n${(error as Error).message}\n${await world.describe()}`
    throw new Error(what, { cause: error })
  }
  return world.done
}

const count = Number(process.env['STILLPOINT_HISTORY'] ?? 1)
const seeds = Array.from({ length: count }, (_, index) => first + index)

for (const seed of seeds) {
  t.test(
    `history ${seed}: nothing is lost, nothing is missed, every backup is of its instant, all images are clean`,
    { skip },
    async t => {
      const done = await history(seed)
      t.equal(done.length, STEPS)
      for (const act of done) t.comment(act)
    },
  )
}
