// A daemon that is killed in the middle of everything at once: a push of a schedule, a pull session that is being read, an overlay that is
// pulled up and a disk that is copied, all of them while guests write. The next one has each disk, each checkpoint, and says what became of each.

import { existsSync } from 'node:fs'
import { copyFile, rm, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import type { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { openTarget } from '../../src/push/target.ts'
import { gatedPlugin } from '../helpers/gated-store.ts'
import { errorsIn, startDaemon, type Daemon } from '../helpers/killed-job.ts'
import { newRepository, restored } from '../helpers/push-point.ts'
import { missing, qemuImg, scratchFolder } from '../helpers/qemu.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'
import { silent } from '../helpers/s3.ts'

const GRANULE = 65536
const GRANULES = 64
const SIZE = GRANULES * GRANULE
/** Bytes a second: none of the jobs comes to its end by itself. */
const SLOW = 16_384

const MACHINES = ['pushed', 'pulled', 'streamed', 'mirrored'] as const
type Machine = (typeof MACHINES)[number]

/** A disk, and a guest that writes to it: each time to the next granule, until its daemon is gone. */
class Guest {
  /** What a granule may hold: the last answered write, and one that was not answered. */
  readonly may = new Map<number, readonly Buffer[]>()
  /** The granules of all writes, in their order. */
  readonly touched: number[] = []
  answered = 0
  #gone = false
  #failure: Error | undefined
  #work = Promise.resolve()

  constructor(
    readonly content: Buffer,
    private readonly seed: number,
  ) {}

  writeTo(client: NbdClient) {
    this.#work = this.#write(client)
  }

  async atLeast(more: number) {
    for (const wanted = this.answered + more; this.answered < wanted; await sleep(10)) if (this.#failure) throw this.#failure
  }

  async goneWith(end: () => Promise<void>) {
    this.#gone = true
    await end()
    await this.#work
    if (this.#failure) throw this.#failure
  }

  isRightIn(now: Buffer) {
    return Array.from({ length: GRANULES }, (_, granule) => granule).filter(granule => {
      const may = this.may.get(granule) ?? [part(this.content, granule)]
      return !may.some(each => each.equals(part(now, granule)))
    })
  }

  async #write(client: NbdClient) {
    for (let count = 0; !this.#gone; count++) {
      // The last eighth is left as it was.
      const granule = (count * 13) % (GRANULES - 8)
      const data = randomBytes(GRANULE, this.seed + count)
      this.may.set(granule, [...(this.may.get(granule)?.slice(-1) ?? [part(this.content, granule)]), data])
      this.touched.push(granule)
      try {
        await client.write(granule * GRANULE, data, { fua: true })
      } catch (error) {
        // Whoever waits for it is told; a daemon that is gone because the test has failed must not hide why.
        if (!this.#gone) this.#failure = error as Error
        return
      }
      this.may.set(granule, [data])
      this.answered++
      await sleep(5)
    }
  }
}

const part = (disk: Buffer, granule: number) => disk.subarray(granule * GRANULE, (granule + 1) * GRANULE)

async function dirtySince(daemon: Daemon, machine: Machine, since: string) {
  const name = `look-${machine}`
  const begun = { machine, mode: 'pull', name, since }
  const { disks } = await daemon.execute<{ disks: { export: string; bitmap: string }[] }>('backup-begin', begun)
  const context = `qemu:dirty-bitmap:${disks[0]!.bitmap}`
  const dirty = new Set<number>()
  await using view = await daemon.nbd(disks[0]!.export, [context])
  for await (const { offset, length, status } of view.extents({ contexts: [context] }))
    if (status[context] === 1) for (let at = offset; at < offset + length; at += GRANULE) dirty.add(Math.floor(at / GRANULE))
  await view.close()
  await daemon.execute('backup-abort', { name })
  return dirty
}

interface Schedule {
  readonly running?: { readonly machines: readonly { readonly attempts: number }[] }
  readonly runs: readonly { readonly why: string; readonly outcome: string; readonly machines: { readonly point?: string }[] }[]
}

const schedule = async (daemon: Daemon) => (await daemon.execute<[Schedule]>('query-schedules', { name: 'often' }))[0]

const jobs = (daemon: Daemon) => daemon.execute<{ id: string; type: string; status: string; error?: string }[]>('query-jobs')

t.test(
  'killed in the middle of everything at once, it finds all again and says what became of it',
  { skip: missing('qemu-img'), timeout: 110_000 },
  async t => {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    const plugin = await gatedPlugin(folder)
    const target = stack.use(await openTarget({ plugin: 'file', path: `${folder}/repo` }, { log: silent }))
    const repository = await newRepository(target)
    const content = diskContent(SIZE, 1)
    await writeFile(`${folder}/image.raw`, content)
    await qemuImg('convert', '-f', 'raw', '-O', 'qcow2', `${folder}/image.raw`, `${folder}/image.qcow2`)
    const guests = Object.fromEntries(MACHINES.map((name, index) => [name, new Guest(content, 1000 * index)]))
    for (const name of MACHINES) {
      if (name === 'pushed') await writeFile(`${folder}/${name}.raw`, content)
      else await copyFile(`${folder}/image.qcow2`, `${folder}/${name}.qcow2`)
    }
    await writeFile(
      `${folder}/stillpoint.yaml`,
      `state: ./state
control: { socket: ./control.sock }
nbd: [ { unix: ./nbd.sock } ]
machines:
  pushed: { disks: { root: { image: ./pushed.raw, format: raw } } }
  pulled: { disks: { root: { image: ./pulled.qcow2, format: qcow2 } } }
  streamed: { disks: { root: { image: ./streamed.qcow2, format: qcow2 } } }
  mirrored: { disks: { root: { image: ./mirrored.qcow2, format: qcow2 } } }
repositories: { offsite: { plugin: '${plugin}', path: '${folder}/repo', hold: '${folder}/hold' } }
schedules: { often: { machines: [pushed], repository: offsite, at: "*:*:0/2", time-zone: UTC } }
`,
    )
    let beforeWhole = 0

    {
      await using daemon = stack.use(await startDaemon(folder))
      while (!(await schedule(daemon)).runs.some(({ outcome }) => outcome === 'done')) await sleep(50)
      await writeFile(`${folder}/hold`, '')
      for (const machine of MACHINES.slice(1)) await daemon.execute('checkpoint-create', { machine, name: 'one' })
      for (const name of MACHINES) guests[name]!.writeTo(await daemon.nbd(`${name}/root`))
      for (const name of MACHINES) await guests[name]!.atLeast(5)
      while (!existsSync(`${folder}/hold.waits`)) await sleep(20)
      await daemon.execute('disk-snapshot', { machine: 'streamed', disks: [{ disk: 'root', file: `${folder}/over.qcow2` }] })
      await daemon.execute('disk-pull', { machine: 'streamed', disk: 'root', speed: SLOW })
      await daemon.execute('disk-copy', { machine: 'mirrored', disk: 'root', file: `${folder}/copy.qcow2`, speed: SLOW })
      for (const name of ['reader', 'whole', 'later']) {
        await daemon.execute('backup-begin', { machine: 'pulled', mode: 'pull', name, since: 'one', checkpoint: `of-${name}` })
        if (name === 'whole') beforeWhole = guests['pulled']!.touched.length
        if (name === 'whole') await daemon.execute('backup-finish', { name })
        await guests['pulled']!.atLeast(5)
      }
      const view = await daemon.nbd('reader/root')
      const before = await view.read(0, SIZE)
      for (const name of MACHINES) await guests[name]!.atLeast(10)
      t.ok((await view.read(0, SIZE)).equals(before), 'the view is of its instant')
      t.same((await jobs(daemon)).map(({ type, status }) => `${type} ${status}`).sort(), ['mirror running', 'stream running'])
      t.ok((await schedule(daemon)).running, 'all of it is under way')
      let killed: Promise<void> | undefined
      await Promise.all(MACHINES.map(name => guests[name]!.goneWith(() => (killed ??= daemon.kill()))))
    }

    await rm(`${folder}/hold`)
    const daemon = stack.use(await startDaemon(folder))
    const now = new Map<Machine, Buffer>()
    for (const name of MACHINES) {
      await using client = await daemon.nbd(`${name}/root`)
      now.set(name, await client.read(0, SIZE))
      t.same(guests[name]!.isRightIn(now.get(name)!), [], `${name}: every answered write is there`)
    }
    for (const name of MACHINES.slice(1)) {
      const dirty = await dirtySince(daemon, name, 'one')
      t.same(
        [...guests[name]!.touched].filter(granule => !dirty.has(granule)),
        [],
        `${name}: no mark is lost`,
      )
    }
    t.same(
      (await daemon.execute<{ machine: string; name: string; usable: boolean }[]>('query-checkpoints'))
        .filter(({ machine }) => machine !== 'pushed')
        .map(({ machine, name, usable }) => `${machine} ${name} ${usable}`)
        .sort(),
      ['mirrored one true', 'pulled of-whole true', 'pulled one true', 'streamed one true'],
      'those of sessions that nobody has finished are as if they had never been',
    )
    const wholly = await dirtySince(daemon, 'pulled', 'of-whole')
    const after = guests['pulled']!.touched.slice(beforeWhole)
    t.same(
      after.filter(granule => !wholly.has(granule)),
      [],
      'what they had marked is in those before',
    )
    t.match(await daemon.execute('checkpoint-repair', { machine: 'pulled' }), { findings: [] })
    await t.rejects(
      daemon.execute('query-backups', { name: 'reader' }),
      /no backup session 'reader'.*a restart of the daemon ends them/,
    )

    t.match(
      (await jobs(daemon))
        .map(({ type, status, error }) => [type, status, error])
        .sort(([one = ''], [two = '']) => one.localeCompare(two)),
      [
        ['mirror', 'concluded', /the daemon ended while it ran; /],
        ['stream', 'concluded', /the daemon ended while it ran; /],
      ],
    )
    while ((await schedule(daemon)).runs.at(-1)?.outcome !== 'done') await sleep(50)
    const { runs } = await schedule(daemon)
    const interrupted = runs.findIndex(({ outcome }) => outcome === 'interrupted')
    t.match(runs[interrupted], { reason: 'the daemon ended while it ran' })
    t.match(runs[interrupted + 1], { why: 'catch-up', outcome: 'done' })
    const point = runs[interrupted + 1]!.machines[0]!.point
    t.ok((await restored(repository, `points/${point}`, 'root')).equals(now.get('pushed')!), 'what it then pushed is the disk')

    // What was begun is begun again, and comes to its end.
    await daemon.execute('disk-pull', { machine: 'streamed', disk: 'root' })
    const again = await daemon.execute<{ job: string }>('disk-copy', {
      machine: 'mirrored',
      disk: 'root',
      file: `${folder}/copy2.qcow2`,
      'at-ready': 'pivot',
    })
    for (;;) {
      const all = await daemon.execute<{ job: string; over: boolean; error?: string }[]>('query-disk-jobs')
      if (all.every(({ over }) => over) && all.some(({ job }) => job === again.job)) break
      await sleep(20)
    }
    await daemon.stop()
    for (const [name, image] of [
      ['streamed', 'over.qcow2'],
      ['mirrored', 'copy2.qcow2'],
    ] as const) {
      await writeFile(`${folder}/wanted`, now.get(name)!)
      t.match(await qemuImg('compare', '-f', 'raw', '-F', 'qcow2', `${folder}/wanted`, `${folder}/${image}`), 'identical', image)
      t.same(await errorsIn(`${folder}/${image}`), [], image)
    }
    t.same(await errorsIn(`${folder}/pulled.qcow2`), [])
  },
)
