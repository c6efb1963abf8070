// Where a machine's disk is found after a restart when jobs have moved it: never at an image that lacks what was answered since.

import { systemError, watchFiles } from '../helpers/file-changes.ts'
import { existsSync, readFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { messageOf } from '../../src/base/errors.ts'
import { startAppliance, type TestAppliance } from '../helpers/appliance.ts'
import { hangingFile, hangingFileMissing } from '../helpers/hanging-file.ts'
import { qemuImg } from '../helpers/qemu.ts'
import { diskContent } from '../helpers/random-bytes.ts'
import { missing } from '../helpers/tools.ts'

const SIZE = 4 << 20

async function untilJob(daemon: TestAppliance, id: string, ...wanted: readonly string[]) {
  for (;;) {
    const jobs = await daemon.execute<{ id: string; status: string }[]>('query-jobs')
    const status = jobs.find(job => job.id === id)?.status ?? 'gone'
    if (wanted.includes(status)) return
    await sleep(5)
  }
}

const bytes = (path: string, offset: number) => readFileSync(path).subarray(offset, offset + 512)

t.test('a write that went to the image that a job has put in place is answered when a restart would find it there', async t => {
  await using stack = new AsyncDisposableStack()
  const daemon = await startAppliance(stack, { disks: { root: diskContent(SIZE, 1) } })
  const source = daemon.image('root')
  const target = `${source}.copy`
  await qemuImg('create', '-q', '-f', 'raw', target, String(SIZE))
  await daemon.execute('blockdev-add', {
    driver: 'raw',
    'node-name': 'copy',
    file: { driver: 'file', filename: target },
  })
  await daemon.execute('blockdev-mirror', { 'job-id': 'j', device: 'db.root', target: 'copy', sync: 'full' })
  await untilJob(daemon, 'j', 'ready')

  const places = join(dirname(source), 'state', 'places-db.json')
  const guest = await daemon.nbd('db/root')
  const write = async (count: number) => {
    const offset = (count * 512) % SIZE
    const data = Buffer.alloc(512, `write ${count};`)
    await guest.write(offset, data)
    if (bytes(source, offset).equals(data)) return false
    t.ok(bytes(target, offset).equals(data))
    if (!existsSync(places) || !readFileSync(places, 'utf8').includes(target)) t.fail(`write ${count} would be lost`)
    return true
  }
  let moved = 0
  const complete = daemon.execute('job-complete', { id: 'j' })
  for (let count = 0; moved < 20; count++) if (await write(count)) moved++
  await complete
  t.equal(moved, 20)
  await guest.flush()
})

t.test('an image that was committed away is not asked for at the next start', { skip: missing('qemu-img') }, async t => {
  await using stack = new AsyncDisposableStack()
  const content = diskContent(SIZE, 2)
  const daemon = await startAppliance(stack, { disks: { root: content } })
  const [middle, top] = ['middle', 'top'].map(name => `${daemon.image('root')}.${name}`)
  for (const [node, file, name] of [
    ['db.root', middle, 'middle'],
    ['middle', top, 'top'],
  ])
    await daemon.execute('blockdev-snapshot-sync', {
      'node-name': node,
      'snapshot-file': file,
      'snapshot-node-name': name,
      format: 'qcow2',
    })
  const guest = await daemon.nbd('db/root')
  await guest.write(0, Buffer.alloc(65536, 'new'))
  await daemon.execute('block-commit', { 'job-id': 'j', device: 'top', 'top-node': 'middle', 'base-node': 'db.root' })
  await untilJob(daemon, 'j', 'gone')
  await guest[Symbol.asyncDispose]()
  await daemon.appliance[Symbol.asyncDispose]()
  await rm(middle!)

  stack.use(await daemon.start())
  const again = await daemon.nbd('db/root')
  const now = await again.read(0, SIZE)
  content.fill('new', 0, 65536)
  t.ok(now.equals(content))
})

t.test(
  'while the state folder hangs no job moves a disk: its guest goes on where a restart finds it, and the job can be done again',
  { skip: hangingFileMissing },
  async t => {
    await using stack = new AsyncDisposableStack()
    const daemon = await startAppliance(stack, { disks: { root: diskContent(SIZE, 1) } })
    const [source, target] = [daemon.image('root'), `${daemon.image('root')}.copy`]
    const places = join(daemon.folder, 'state', 'places-db.json')
    const isMoved = () => existsSync(places) && readFileSync(places, 'utf8').includes(target)
    await qemuImg('create', '-q', '-f', 'raw', target, String(SIZE))
    const file = { driver: 'file', filename: target }
    await daemon.execute('blockdev-add', { driver: 'raw', 'node-name': 'copy', file })
    const mirror = async () => {
      await daemon.execute('blockdev-mirror', { 'job-id': 'j', device: 'db.root', target: 'copy', sync: 'full' })
      await untilJob(daemon, 'j', 'ready')
    }
    const guest = await daemon.nbd('db/root')
    await mirror()
    {
      await using hanging = new AsyncDisposableStack()
      // Where the new content is written before it gets its name.
      const hung = await hangingFile(hanging, `${places}.new`, 4096)
      hung.hang()
      await daemon.execute('job-complete', { id: 'j' })
      await untilJob(daemon, 'j', 'gone')
      const ended = daemon.events.findLast(({ event }) => event === 'BLOCK_JOB_COMPLETED')
      t.match(ended?.data, { error: /the state folder .* has not answered for 10 s; look at the disk/ })
      await guest.write(0, Buffer.alloc(512, 'more'))
      t.ok(bytes(source, 0).equals(Buffer.alloc(512, 'more')))
      t.notOk(isMoved())
      await t.rejects(daemon.execute('checkpoint-create', { machine: 'db' }), { message: /the state folder .* hangs/ })
      hung.goOn()
      const hangs = () =>
        daemon.execute('checkpoint-create', { machine: 'db', name: 'one' }).then(
          () => false,
          (error: unknown) => /hangs/.test(String(error)),
        )
      while (await hangs()) await sleep(20)
      t.notOk(isMoved(), 'what was given up is not done later')
    }
    await mirror()
    await daemon.execute('job-complete', { id: 'j' })
    await untilJob(daemon, 'j', 'gone')
    await guest.write(512, Buffer.alloc(512, 'there'))
    t.ok(bytes(target, 0).equals(Buffer.alloc(512, 'more')))
    t.ok(bytes(target, 512).equals(Buffer.alloc(512, 'there')))
    t.ok(isMoved())
    await guest[Symbol.asyncDispose]()
  },
)

t.test('where one disk cannot be closed well the others are, and whoever comes next has them', async t => {
  await using stack = new AsyncDisposableStack()
  const disks = { one: diskContent(SIZE, 1), two: diskContent(SIZE, 2), three: diskContent(SIZE, 3) }
  const daemon = await startAppliance(stack, { disks })
  await daemon.execute('checkpoint-create', { machine: 'db', name: 'c' })
  for (const disk of Object.keys(disks)) await (await daemon.nbd(`db/${disk}`)).write(0, Buffer.alloc(512, 1))
  {
    using _watching = watchFiles(daemon.folder, ({ what, path }) => {
      if (what === 'fdatasync' && path.includes('two')) throw systemError('EIO', what)
    })
    const error: unknown = await daemon.appliance[Symbol.asyncDispose]().catch((thrown: unknown) => thrown)
    t.match(messageOf(error), /db\.two.*Input\/output error/)
  }
  await t.resolves(daemon.start().then(again => again[Symbol.asyncDispose]()))
})
