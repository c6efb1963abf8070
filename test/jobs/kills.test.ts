// A daemon that is killed in the middle of a job that changes a chain of images loses nothing: the next one has every write that was
// answered and durable, every mark of every checkpoint, and images without errors; and the same job, started again, comes to its end.

import { existsSync } from 'node:fs'
import { mkdir, readFile, rm } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { messageOf } from '../../src/base/errors.ts'
import {
  again,
  type Copies,
  type Daemon,
  errorsIn,
  IMAGES,
  Load,
  lookAt,
  makeMachine,
  SIZE,
  startDaemon,
  within,
} from '../helpers/killed-job.ts'
import { missing, qemuImg, scratchFolder } from '../helpers/qemu.ts'
import { generator } from '../helpers/random-bytes.ts'
import { seed } from '../helpers/seed.ts'

const skip = missing('qemu-img')

interface Kind {
  /** Starts it; with a speed, it takes longer than the longest wait before a kill. */
  start(daemon: Daemon, speed: number, attempt: number): Promise<unknown>
  /** It waits to be completed. */
  readonly ready?: boolean
  readonly instant?: boolean
  /** What nobody needs when it has succeeded. */
  readonly spare: readonly string[]
  /** It is done once more, to its end. */
  readonly repeated?: boolean
}

const file = (daemon: Daemon, image: string) => `${daemon.folder}/${image}`

const kinds: Record<string, Kind> = {
  'block-commit of an image in the middle': {
    start: (daemon, speed) =>
      daemon.execute('block-commit', {
        'job-id': 'j',
        device: 'db.root',
        top: file(daemon, IMAGES.middle),
        base: file(daemon, IMAGES.base),
        speed,
      }),
    repeated: true,
    spare: [IMAGES.middle],
  },
  'block-commit of the active image': {
    start: (daemon, speed) => daemon.execute('block-commit', { 'job-id': 'j', device: 'db.root', speed }),
    ready: true,
    spare: [IMAGES.middle, IMAGES.top],
  },
  'block-stream': {
    start: (daemon, speed) => daemon.execute('block-stream', { 'job-id': 'j', device: 'db.root', speed }),
    repeated: true,
    spare: [IMAGES.middle, IMAGES.base],
  },
  'blockdev-mirror with a pivot': {
    async start(daemon, speed, attempt) {
      const filename = file(daemon, `copy${attempt}.qcow2`)
      await qemuImg('create', '-q', '-f', 'qcow2', filename, String(SIZE))
      const target = { driver: 'qcow2', 'node-name': 'copy', file: { driver: 'file', filename } }
      await daemon.execute('blockdev-add', target)
      await daemon.execute('blockdev-mirror', { 'job-id': 'j', device: 'db.root', target: 'copy', sync: 'full', speed })
    },
    ready: true,
    spare: Object.values(IMAGES),
  },
  'blockdev-snapshot-sync': {
    start: (daemon, _speed, attempt) =>
      daemon.execute('blockdev-snapshot-sync', {
        'node-name': 'db.root',
        'snapshot-file': file(daemon, `over${attempt}.qcow2`),
        'snapshot-node-name': `over${attempt}`,
      }),
    instant: true,
    spare: [],
  },
}

const pace = 12 << 20
const statusIs = (...wanted: string[]) => {
  return ({ event, data }: { event: string; data?: unknown }) =>
    event === 'JOB_STATUS_CHANGE' && wanted.includes((data as { status: string }).status)
}

/** Starts the job, and returns at some instant: in the middle of the copy, or about its end. */
async function toSomeInstant(kind: Kind, daemon: Daemon, random: () => number, middle: boolean): Promise<string> {
  // Whether it was answered is not known where the kill is at that instant.
  const asked = kind.start(daemon, middle ? pace : 0, 1)
  if (kind.instant) {
    asked.catch((error: unknown) => error)
    const ms = random() % 60
    await sleep(ms)
    return `${ms} ms after it was asked for`
  }
  await asked
  if (middle) {
    const ms = random() % 600
    await sleep(ms)
    return `${ms} ms after it began`
  }
  if (kind.ready) {
    await within(20_000, 'ready', daemon.seen(statusIs('ready')))
    const completing = daemon.execute('job-complete', { id: 'j' })
    completing.catch((error: unknown) => error) // it may be killed before it answers
    const ms = random() % 60
    await sleep(ms)
    return `${ms} ms after it was completed`
  }
  await within(20_000, 'pending', daemon.seen(statusIs('waiting', 'pending', 'aborting')))
  const ms = random() % 20
  await sleep(ms)
  return `${ms} ms after it had done its work`
}

/** More than one, by hand. */
const kills = Number(process.env['STILLPOINT_KILLS'] ?? 1)

t.test(`a daemon is killed in the middle of jobs (seed ${seed})`, { skip, timeout: 1_000_000 }, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = `${await scratchFolder(stack)}/machine`
  await mkdir(folder)
  const copies = await makeMachine(folder, seed)
  const random = generator(seed)
  for (const [name, kind] of Object.entries(kinds)) {
    await t.test(`${name}: nothing is lost`, async t => {
      for (let kill = 0; kill < kills; kill++) {
        await again(folder)
        const images = [...Object.values(IMAGES), 'copy1.qcow2', 'over1.qcow2'].map(image => `${folder}/${image}`)
        const { load, ran, at } = await killed(folder, kind, random)
        t.comment(`${at}: ${load.answered} writes answered, ${load.durable} of them durable`)
        for (const image of images) if (existsSync(image)) t.same(await errorsIn(image), [], `${at}: ${image}`)

        await using daemon = await startDaemon(folder)
        const { now, wrong, unusable, extra } = await lookAt(daemon, copies)
        t.comment(`${at}: ${extra} granules too many, over all checkpoints; of no use: ${unusable.join('; ') || 'none'}`)
        t.same([...load.wrongIn(now), ...wrong], [], at)
        t.same(unusable, [], at)
        const jobs = () => daemon.execute<{ id: string; status: string; error?: string }[]>('query-jobs')
        const known = { id: 'j', status: 'concluded', error: /the daemon ended while it ran; .*start the job again/ }
        // About its end it may be over, or not; then it is as well to be told of it as not.
        if (ran) t.match(await jobs(), [known], `${at}: the job is known`)
        if (ran) t.match(daemon.log(), /job 'j': the daemon ended while it ran/, 'and logged')
        for (const job of await jobs()) {
          t.match(job, known)
          if (kind.repeated) continue // it is started again by the same id
          await daemon.execute('job-dismiss', { id: 'j' })
          t.same(await jobs(), [], 'until it is dismissed')
          t.equal(await readFile(`${folder}/state/jobs.json`, 'utf8'), '[]\n')
        }
        if (kind.repeated && kill === 0) await repeat(t, kind, daemon, now, copies)
        await daemon.stop()
      }
    })
  }
})

async function killed(folder: string, kind: Kind, random: () => number) {
  await using daemon = await startDaemon(folder)
  const guest = await daemon.nbd('db/root')
  const load = new Load(guest, await guest.read(0, SIZE), random)
  const middle = kind.repeated || random() % 2 === 0
  const instant = await toSomeInstant(kind, daemon, random, middle)
  await load.end(() => daemon.kill())
  const ran = middle && !kind.instant && !daemon.events.some(statusIs('waiting', 'aborting'))
  return { load, ran, at: `${instant}${daemon.events.some(statusIs('concluded')) ? ', when it was over' : ''}` }
}

/** The same job again, to its end, and then a daemon without the images that nobody needs any more. */
async function repeat(t: Test, kind: Kind, daemon: Daemon, before: Buffer, copies: Copies) {
  const failed = await kind.start(daemon, 0, 2).then(
    () => undefined,
    (error: unknown) => messageOf(error),
  )
  // Where it was over the images are not in the chain any more.
  if (failed) return t.match(failed, /not in this backing file chain|not found|can't find/i)
  await within(20_000, 'its end', daemon.seen(statusIs('concluded')))
  {
    await using guest = await daemon.nbd('db/root')
    t.ok((await guest.read(0, SIZE)).equals(before), 'started again, it comes to its end, and the disk reads the same')
  }
  await daemon.stop()
  for (const image of kind.spare) await rm(`${daemon.folder}/${image}`)
  await using last = await startDaemon(daemon.folder)
  const later = await lookAt(last, copies)
  t.ok(later.now.equals(before), 'and so after a restart without the images that were taken out')
  t.same(later.wrong, [])
  t.same(later.unusable, [])
  await last.stop()
  return true
}
