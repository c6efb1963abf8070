// Push and restore on files: ours against zstd alone, restic, borg and qemu-img, on the same image of real data, in turns; and what a served restore
// point takes. All is measured until it would survive a power cut. Who is not installed is said, and left out.

import { mkdir, open, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { NbdClient } from 'nbd-client-ts'
import { formatSize } from '../../src/base/units.ts'
import { find, run } from '../demo/tools.ts'
import { measured, watchMemory, type Measured } from '../measured.ts'
import { main, startDaemon } from '../push-daemon.ts'
import { makeRealImage } from '../real-data.ts'
import { digits, median, spread, type Part, type Report } from '../report.ts'
import { startProgram } from '../servers.ts'

const MiB = 2 ** 20
const GiB = 2 ** 30
/** As much as where the goals are from: what a push costs however small the disk is, is a tenth of the time of one of 1 GiB. */
const SIZE = 3 * GiB
const LEAST = GiB
const MEMORY_GOAL = 256 * MiB

interface Contender {
  readonly name: string
  /** The program that must be there. */
  readonly needs?: string
  /** Makes a repository, and backs up into it; only what `work` does counts. */
  backup(folder: string, image: string, stack: AsyncDisposableStack): Promise<{ readonly work: () => Promise<Measured> }>
  /** Of what was backed up. */
  readonly restore?: (folder: string, target: string) => Promise<Measured>
  /** How many times as fast we are to be. */
  readonly goals: { readonly backup?: number; readonly restore?: number }
}

/** No question is to wait for an answer; nothing of ours stays in the user's home. */
const foreign = (folder: string) => ({
  RESTIC_PASSWORD: 'bench',
  RESTIC_CACHE_DIR: join(folder, 'cache'),
  BORG_BASE_DIR: join(folder, 'cache'),
  BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK: 'yes',
})

const ours = (name: string, encrypted: boolean): Contender => ({
  name,
  async backup(folder, image, stack) {
    const daemon = await startDaemon(stack, folder, { disks: { root: image }, encrypted })
    return {
      work: async () => {
        const memory = watchMemory(daemon.pid)
        return { seconds: (await daemon.push()).seconds, memory: memory.end() }
      },
    }
  },
  restore: (folder, target) =>
    measured(main[0], [main[1], 'restore', 'bench', 'bench/latest', 'root', target, '--config', join(folder, 'config.yaml')], {
      durable: target,
    }),
  goals: {},
})

const OURS = ours('stillpoint', false)

const contenders: readonly Contender[] = [
  OURS,
  ours('stillpoint, encrypted', true),
  {
    name: 'zstd -1 -T0',
    needs: 'zstd',
    backup: async (folder, image) => ({
      work: () => measured('zstd', ['-1', '-T0', '-q', '-f', image, '-o', join(folder, 'disk.zst')], { durable: folder }),
    }),
    goals: { backup: 1 / 1.1 },
  },
  {
    name: 'restic',
    needs: 'restic',
    async backup(folder, image) {
      await measured('restic', ['-r', join(folder, 'restic'), 'init'], { env: foreign(folder) })
      return {
        work: () =>
          measured('restic', ['-r', join(folder, 'restic'), 'backup', '-q', image], { env: foreign(folder), durable: folder }),
      }
    },
    restore: (folder, target) =>
      measured('restic', ['-r', join(folder, 'restic'), 'restore', '-q', 'latest', '--target', target], {
        env: foreign(folder),
        durable: target,
      }),
    goals: { backup: 2.7, restore: 1.5 },
  },
  {
    name: 'borg create -C zstd,1',
    needs: 'borg',
    async backup(folder, image) {
      await measured('borg', ['init', '-e', 'none', join(folder, 'borg')], { env: foreign(folder) })
      const create = ['create', '-C', 'zstd,1', `${join(folder, 'borg')}::one`, image]
      return { work: () => measured('borg', create, { env: foreign(folder), durable: folder }) }
    },
    goals: { backup: 2 },
  },
  {
    name: 'qemu-img convert -c, zstd',
    needs: 'qemu-img',
    backup: async (folder, image) => {
      const options = ['-c', '-f', 'raw', '-O', 'qcow2', '-o', 'compression_type=zstd']
      return { work: () => measured('qemu-img', ['convert', ...options, image, join(folder, 'disk.qcow2')], { durable: folder }) }
    },
    restore: (folder, target) =>
      measured('qemu-img', ['convert', '-O', 'raw', join(folder, 'disk.qcow2'), target], { durable: target }),
    goals: { backup: 1.6 },
  },
]

export const push: Part = {
  name: 'push',
  title: 'push and restore of real data: the time of others over ours',
  async measure(report, { rounds, folder }) {
    report.begin(this.title)
    const image = join(folder, 'real.raw')
    const size = await makeRealImage(image, SIZE, { least: LEAST })
    report.remark(`The image has ${formatSize(size)}.`)
    const there = contenders.filter(({ name, needs }) => {
      if (needs === undefined || find(needs)) return true
      report.remark(`${name} is not installed, and left out.`)
      return false
    })
    await compare(report, there, { rounds, folder, image })
    report.begin('push: served restore points')
    await served(report, { folder, image, size, rounds })
  },
}

/**
 * Takes memory for files, and lets go of it. A virtual machine has given back to its host what was free for a while, and whoever comes first pays
 * several times what a copy takes to have it again.
 */
async function warmMemory(folder: string) {
  const path = join(folder, 'warm')
  {
    await using file = await open(path, 'w')
    const piece = Buffer.alloc(4 * MiB, 1)
    for (let at = 0; at < SIZE + SIZE / 2; at += piece.length) await file.write(piece, 0, piece.length, at)
  }
  await rm(path)
}

async function compare(
  report: Report,
  there: readonly Contender[],
  { rounds, folder, image }: { readonly rounds: number; readonly folder: string; readonly image: string },
) {
  const backups = new Map<Contender, Measured[]>(there.map(one => [one, []]))
  const restores = new Map<Contender, Measured[]>(there.map(one => [one, []]))
  for (let round = 0; round < rounds; round++) {
    for (const one of round % 2 === 0 ? there : there.toReversed()) {
      const place = join(folder, 'place')
      await mkdir(place)
      {
        await using stack = new AsyncDisposableStack()
        const { work } = await one.backup(place, image, stack)
        await warmMemory(folder)
        backups.get(one)!.push(await work())
      }
      const target = join(place, 'restored')
      if (one.restore) {
        await warmMemory(folder)
        restores.get(one)!.push(await one.restore(place, target))
      }
      if (one === OURS && round === 0) await run('cmp', [image, target])
      await rm(place, { recursive: true })
    }
  }
  for (const [what, all] of [
    ['backup', backups],
    ['restore', restores],
  ] as const) {
    const mine = all.get(OURS)!
    for (const [{ name, goals }, runs] of all) {
      if (runs.length === 0) continue
      const ratios = runs.map(({ seconds }, round) => seconds / mine[round]!.seconds)
      const memory = Math.max(...runs.map(({ memory }) => memory))
      const goal = goals[what]
      report.add({
        what: `${what}: ${name} (${digits(median(runs.map(({ seconds }) => seconds)))} s, ${formatSize(memory)})`,
        value: spread(ratios),
        ...(goal !== undefined && { goal: `>= ${digits(goal)}`, reached: median(ratios) >= goal }),
      })
    }
    const most = Math.max(...mine.map(({ memory }) => memory))
    report.add({ what: `${what}: our memory`, value: formatSize(most), goal: '<= 256 MiB', reached: most <= MEMORY_GOAL })
  }
}

/** What a restore point takes that is served: in turns with a restore, each time by a new server, which has nothing cached. */
async function served(
  report: Report,
  {
    folder,
    image,
    size,
    rounds,
  }: { readonly folder: string; readonly image: string; readonly size: number; readonly rounds: number },
) {
  const place = join(folder, 'place')
  await mkdir(place)
  {
    await using stack = new AsyncDisposableStack()
    const daemon = await startDaemon(stack, place, { disks: { root: image }, encrypted: false })
    await daemon.push()
  }
  const config = ['--config', join(place, 'config.yaml')]
  const [restored, socket] = [join(place, 'restored'), join(place, 'served.sock')]
  const firsts: number[] = []
  const speeds: number[] = []
  for (let round = 0; round < rounds; round++) {
    const restore = await measured(main[0], [main[1], 'restore', 'bench', 'bench/latest', 'root', restored, ...config])
    await rm(restored)
    await using stack = new AsyncDisposableStack()
    await startProgram(stack, [...main, 'serve', 'bench', 'bench/latest/root', '--socket', socket, ...config], socket)
    const begun = performance.now()
    const client = await NbdClient.connect(`nbd+unix:///root?socket=${socket}`)
    await client.read(size / 2, 4096)
    firsts.push(performance.now() - begun)
    await client[Symbol.asyncDispose]()
    if (!find('nbdcopy')) continue
    const read = await measured('nbdcopy', [`nbd+unix:///root?socket=${socket}`, 'null:'])
    speeds.push(restore.seconds / read.seconds)
  }
  const first = median(firsts)
  report.add({ what: 'served: connect, and the first bytes', value: `${digits(first)} ms`, goal: '< 50 ms', reached: first < 50 })
  if (speeds.length === 0) return report.remark('nbdcopy is not installed: nobody reads what is served.')
  report.add({
    what: 'served: all of it in order, over the speed of a restore',
    value: spread(speeds),
    goal: '>= 0.7',
    reached: median(speeds) >= 0.7,
  })
}
