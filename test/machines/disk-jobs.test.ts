// What is refused while a disk is copied, how a copy ends without a pivot, snapshots of several disks, pulls and commits; and that checkpoints
// outlive all of it. qemu-img judges.

import { access, copyFile, mkdir, readFile, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import type { QmpError } from '../../src/control/qmp-client.ts'
import { diskDaemon, GRANULE, makeDisk, MiB, SIZE, Writer, type DiskDaemon, type DiskJobReply } from '../helpers/disk-daemon.ts'
import { missing, qemuImg, scratchFolder } from '../helpers/qemu.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const skip = missing('qemu-img')
const DB = { machine: 'db', disk: 'root' }
const ACTIVE = { 'exit-code': 11, 'libvirt-error': 83 }

const options = { skip }

async function refusal(call: Promise<unknown>) {
  try {
    return await call
  } catch (error) {
    const { desc, data } = error as QmpError
    return { desc, data }
  }
}

async function compare(t: Test, folder: string, image: string, content: Buffer, format = 'qcow2') {
  await writeFile(`${folder}/wanted`, content)
  t.match(await qemuImg('compare', '-U', '-f', 'raw', '-F', format, `${folder}/wanted`, image), 'identical')
  if (format === 'qcow2') t.match(await qemuImg('check', '-U', image), 'No errors')
}

const chainOf = async (image: string) =>
  (JSON.parse(await qemuImg('info', '-U', '--backing-chain', '--output=json', image)) as Record<string, string>[]).map(
    ({ 'backing-filename': behind }) => behind,
  )

t.test('while a copy is active, all that it makes unsafe is refused with error 83, and the guest goes on', options, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const content = await makeDisk(folder, 'chain')
  const daemon = stack.use(await diskDaemon(folder))
  await using writer = new Writer(await daemon.nbd('db/root'), content)
  const { job } = await daemon.execute<{ job: string }>('disk-copy', { ...DB, file: `${folder}/copy`, speed: 65536 })
  t.same(await refusal(daemon.execute('disk-pivot', DB)), {
    desc: "block copy still active: disk 'db/root' not ready for pivot yet",
    data: ACTIVE,
  })
  const wanted = { desc: "block copy still active: disk 'db/root' already in active block job", data: ACTIVE }
  for (const [command, args] of [
    ['disk-copy', { ...DB, file: `${folder}/other` }],
    ['disk-pull', DB],
    ['disk-commit', { ...DB, active: true }],
    ['disk-snapshot', { machine: 'db', disks: [{ disk: 'root', file: `${folder}/other` }] }],
    ['backup-begin', { machine: 'db', mode: 'pull' }],
  ] as const)
    t.same(await refusal(daemon.execute(command, args)), wanted, command)
  await t.rejects(access(`${folder}/other`), 'nothing was made')
  await t.rejects(daemon.execute('blockdev-del', { 'node-name': 'db.root' }), /in use/)
  await writer.atLeast(3)
  t.match(await daemon.execute('disk-abort', DB), { over: true, cancelled: true, error: undefined })
  t.ok(daemon.events.some(({ event, data }) => event === 'BLOCK_JOB_CANCELLED' && (data as { device: string }).device === job))
  await writer.atLeast(3)
  await writer.stop()
  await daemon.stop()
  await compare(t, folder, `${folder}/top.qcow2`, content)
})

t.test('aborted when it is ready, a copy is the disk at that instant, and the guest goes on where it was', options, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const content = await makeDisk(folder, 'qcow2')
  const daemon = stack.use(await diskDaemon(folder))
  const guest = await daemon.nbd('db/root')
  await daemon.execute('disk-copy', { ...DB, file: `${folder}/copy` })
  await daemon.ready()
  const late = randomBytes(GRANULE, 4)
  await guest.write(3 * GRANULE, late)
  late.copy(content, 3 * GRANULE)
  const told = await daemon.execute<DiskJobReply>('disk-abort', { ...DB, async: true })
  t.equal(typeof told.over, 'boolean', 'answered')
  await daemon.over()
  await guest.write(0, randomBytes(GRANULE, 5))
  t.match((await daemon.disks())[0].image, /disk\.qcow2$/)
  await compare(t, folder, `${folder}/copy`, content)
  await t.rejects(daemon.execute('disk-pivot', DB), { message: "disk 'db/root' does not have an active block job" })
})

t.test('a copy that fails leaves the guest where it is, and says why', options, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const content = await makeDisk(folder, 'raw')
  const daemon = stack.use(await diskDaemon(folder))
  await using writer = new Writer(await daemon.nbd('db/root'), content)
  await qemuImg('create', '-q', '-f', 'raw', `${folder}/copy`, String(SIZE))
  for (const [name, rules] of [
    ['soon', [{ on: 'write', skip: 2 }]],
    ['flush', [{ on: 'flush' }]],
    ['late', [{ on: 'write', skip: 200, errno: 'ENOSPC' }]],
  ] as const) {
    await daemon.execute('blockdev-add', {
      driver: 'inject-error',
      'node-name': name,
      rules,
      file: { driver: 'raw', file: { driver: 'file', filename: `${folder}/copy` } },
    })
    await daemon.execute('disk-copy', { ...DB, 'node-name': name, granularity: 65536 })
    t.match(await daemon.over(), { over: true, error: /error|space/i }, name)
    await writer.atLeast(3)
    await daemon.execute('blockdev-del', { 'node-name': name })
  }
  await daemon.execute('blockdev-add', {
    driver: 'raw',
    'node-name': 'nowhere',
    file: { driver: 'inject-error', rules: [], file: { driver: 'file', filename: `${folder}/copy` } },
  })
  await daemon.execute('disk-copy', { ...DB, 'node-name': 'nowhere' })
  await daemon.ready()
  const unfindable = /a restart of the daemon would not find disk 'db\/root' there/
  await t.rejects(daemon.execute('disk-pivot', DB), { message: unfindable })
  t.match(await daemon.over(), { error: unfindable })
  await writer.atLeast(3)
  await writer.stop()
  t.match((await daemon.disks())[0].image, /disk\.raw$/)
  await daemon.stop()
  await compare(t, folder, `${folder}/disk.raw`, content, 'raw')
})

t.test('a copy that is to pivot by itself does so with nobody there, and checkpoints are what they were', options, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  await makeDisk(folder, 'chain')
  {
    const daemon = stack.use(await diskDaemon(folder))
    const guest = await daemon.nbd('db/root')
    await daemon.execute('checkpoint-create', { machine: 'db', name: 'one' })
    await guest.write(1 * GRANULE, randomBytes(512, 1))
    await daemon.execute('checkpoint-create', { machine: 'db', name: 'two' })
    await guest.write(2 * GRANULE, randomBytes(512, 2))
    await daemon.execute('disk-copy', { ...DB, file: `${folder}/copy`, 'at-ready': 'pivot' })
    t.equal((await daemon.over()).error, undefined)
    t.match((await daemon.disks())[0].image, /copy$/)
    await guest.write(3 * GRANULE, randomBytes(512, 3))
    t.match(await changed(daemon), { one: 3 * GRANULE, two: 2 * GRANULE })
    await daemon.stop()
  }
  const again = stack.use(await diskDaemon(folder))
  t.match(await changed(again), { one: 3 * GRANULE, two: 2 * GRANULE }, 'after a restart')
  t.same(await again.execute('checkpoint-repair', { machine: 'db' }), { mended: false, findings: [] })
})

const changed = async (daemon: DiskDaemon) => {
  const all = await daemon.execute<{ name: string; changed: number }[]>('query-checkpoints', { machine: 'db', size: true })
  return Object.fromEntries(all.map(({ name, changed }) => [name, changed]))
}

t.test('a copy that is to finish by itself is left whole', options, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const content = await makeDisk(folder, 'raw')
  const daemon = stack.use(await diskDaemon(folder))
  await daemon.execute('disk-copy', { ...DB, file: `${folder}/copy`, format: 'qcow2', 'at-ready': 'finish' })
  t.match(await daemon.over(), { error: undefined, cancelled: false })
  await compare(t, folder, `${folder}/copy`, content)
})

t.test('a whole chain moves to another folder, and goes on naming what is behind it by relative names', options, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const content = await makeDisk(folder, 'chain')
  const daemon = stack.use(await diskDaemon(folder))
  await using writer = new Writer(await daemon.nbd('db/root'), content)
  await daemon.execute('disk-snapshot', { machine: 'db', disks: [{ disk: 'root', file: `${folder}/second.qcow2` }] })
  const there = `${folder}/there`
  await mkdir(there)
  for (const image of ['base.qcow2', 'top.qcow2']) await copyFile(`${folder}/${image}`, `${there}/${image}`)
  await qemuImg('create', '-q', '-f', 'qcow2', '-b', 'top.qcow2', '-F', 'qcow2', `${there}/second.qcow2`)
  await daemon.execute('disk-copy', { ...DB, file: `${there}/second.qcow2`, shallow: true, reuse: true, 'at-ready': 'pivot' })
  t.equal((await daemon.over()).error, undefined)
  await writer.atLeast(5)
  await writer.stop()
  await daemon.stop()
  t.same(await chainOf(`${there}/second.qcow2`), ['top.qcow2', 'base.qcow2', undefined])
  await compare(t, folder, `${there}/second.qcow2`, content)
})

t.test('disks get overlays at one instant or none does; then one is pulled up and one committed down', options, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const content = await makeDisk(folder, 'qcow2', ['root', 'data'])
  const contents = { root: content, data: Buffer.from(content) }
  const daemon = stack.use(await diskDaemon(folder))
  await using root = new Writer(await daemon.nbd('db/root'), contents.root)
  await using data = new Writer(await daemon.nbd('db/data'), contents.data, 12)
  await daemon.execute('checkpoint-create', { machine: 'db', name: 'one' })
  const overlays = (round: number) => ['root', 'data'].map(disk => ({ disk, file: `${folder}/${disk}.${round}` }))
  await mkdir(`${folder}/data.0`)
  await t.rejects(daemon.execute('disk-snapshot', { machine: 'db', disks: overlays(0) }), /already exists/)
  const gone = [
    { disk: 'root', file: `${folder}/root.0` },
    { disk: 'data', file: `${folder}/no/folder` },
  ]
  await t.rejects(daemon.execute('disk-snapshot', { machine: 'db', disks: gone }), /Could not create/)
  await t.rejects(access(`${folder}/root.0`), 'nothing is left of the other')
  await t.rejects(daemon.execute('disk-snapshot', { machine: 'db', disks: overlays(1), reuse: true }), /missing existing file/)
  for (const round of [1, 2]) {
    t.same(await daemon.execute('disk-snapshot', { machine: 'db', disks: overlays(round) }), overlays(round))
    await root.atLeast(3)
    await data.atLeast(3)
  }
  t.same(
    (await daemon.disks()).map(({ image }) => image),
    [`${folder}/root.2`, `${folder}/data.2`],
  )

  await t.rejects(daemon.execute('disk-commit', DB), /requires active flag/)
  await t.rejects(daemon.execute('disk-commit', { ...DB, top: `${folder}/root.1`, active: true }), /is not active/)
  await daemon.execute('disk-commit', { ...DB, top: `${folder}/root.1` })
  t.equal((await daemon.over()).error, undefined)
  await daemon.execute('disk-commit', { ...DB, active: true })
  await daemon.ready()
  await root.atLeast(3)
  t.same(await refusal(daemon.execute('backup-begin', { machine: 'db', mode: 'pull' })), {
    desc: "block copy still active: disk 'db/root' already in active block job",
    data: ACTIVE,
  })
  t.match(await daemon.execute('disk-pivot', DB), { type: 'commit', over: true })
  t.match((await daemon.disks())[0].image, /disk-root\.qcow2$/)

  await daemon.execute('disk-pull', { machine: 'db', disk: 'data', base: `${folder}/disk-data.qcow2` })
  for (;;) {
    const [job] = await daemon.execute<DiskJobReply[]>('query-disk-jobs', { machine: 'db', disk: 'data' })
    if (job!.over) break
  }
  for (const writer of [root, data]) {
    await writer.atLeast(3)
    await writer.stop()
  }
  t.same(
    (await daemon.execute<{ usable: boolean }[]>('query-checkpoints')).map(({ usable }) => usable),
    [true],
  )
  await daemon.stop()
  await compare(t, folder, `${folder}/disk-root.qcow2`, contents.root)
  await compare(t, folder, `${folder}/data.2`, contents.data)
  t.equal((await chainOf(`${folder}/data.2`)).length, 2)
  const again = stack.use(await diskDaemon(folder))
  for (const [disk, wanted] of Object.entries(contents))
    t.ok((await (await again.nbd(`db/${disk}`)).read(0, SIZE)).equals(wanted), `${disk} is found after a restart`)
  t.same(
    (await again.execute<{ usable: boolean }[]>('query-checkpoints')).map(({ usable }) => usable),
    [true],
  )
  t.ok((await readFile(`${folder}/state/places-db.json`, 'utf8')).includes('data.2'))
})

t.test('a backup that begins while a disk is pulled or committed is of its instant, and outlives the job', options, async t => {
  for (const kind of ['pull', 'stopped pull', 'commit'] as const) {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    const content = await makeDisk(folder, 'chain')
    const daemon = stack.use(await diskDaemon(folder))
    const guest = await daemon.nbd('db/root')
    if (kind === 'commit') {
      const data = randomBytes(64 * GRANULE, 7)
      await guest.write(GRANULE, data)
      data.copy(content, GRANULE)
      await daemon.execute('disk-snapshot', { machine: 'db', disks: [{ disk: 'root', file: `${folder}/over.qcow2` }] })
      await daemon.execute('disk-commit', { ...DB, top: `${folder}/top.qcow2`, speed: GRANULE })
    } else await daemon.execute('disk-pull', { ...DB, speed: GRANULE })
    const then = Buffer.from(content)
    await daemon.execute('backup-begin', { machine: 'db', mode: 'pull', name: 'first' })
    await daemon.execute('backup-begin', { machine: 'db', mode: 'pull', name: 'second' })
    await using writer = new Writer(guest, content)
    await writer.atLeast(3)
    const [{ job }] = await daemon.execute<[{ job: string }]>('query-disk-jobs', DB)
    if (kind === 'stopped pull') await daemon.execute('disk-abort', DB)
    else await daemon.execute('block-job-set-speed', { device: job, speed: 0 })
    t.equal((await daemon.over()).error, undefined, kind)
    await writer.atLeast(20)
    for (const name of ['second', 'first']) {
      t.ok((await (await daemon.nbd(`${name}/root`)).read(0, SIZE)).equals(then), `${kind}: ${name}`)
      await daemon.execute('backup-finish', { name })
    }
    await writer.atLeast(3)
    await writer.stop()
    t.ok((await guest.read(0, SIZE)).equals(content), `${kind}: the guest`)
    await daemon.stop()
    const image = kind === 'commit' ? 'over.qcow2' : 'top.qcow2'
    t.equal((await chainOf(`${folder}/${image}`)).length, kind === 'pull' ? 1 : 2)
    await compare(t, folder, `${folder}/${image}`, content)
  }
})

t.test('a backup session ends while a backup job that began before it is paused', options, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  await makeDisk(folder, 'qcow2')
  const daemon = stack.use(await diskDaemon(folder))
  const [{ node }] = await daemon.disks()
  await daemon.execute('blockdev-add', { driver: 'null-co', 'node-name': 'target', size: SIZE })
  await daemon.execute('blockdev-backup', { 'job-id': 'j', device: node, target: 'target', sync: 'full', speed: GRANULE })
  await t.rejects(
    daemon.execute('disk-pull', DB),
    /a backup; .* end it with: stillpoint qmp job-cancel id=ID/,
    'disk abort knows none',
  )
  // What is overwritten is read elsewhere, and behind it the job asks the disk anew what is there: below the session's view.
  const guest = await daemon.nbd('db/root')
  await guest.write(2 * MiB, randomBytes(GRANULE, 3))
  await daemon.execute('backup-begin', { machine: 'db', mode: 'pull', name: 'session' })
  await daemon.execute('block-job-set-speed', { device: 'j', speed: 4 * MiB })
  for (let current = 0; current < 3 * MiB;)
    [{ 'current-progress': current }] = await daemon.execute<[{ 'current-progress': number }]>('query-jobs')
  await daemon.execute('job-pause', { id: 'j' })
  const ended = daemon.execute('backup-finish', { name: 'session' }).then(() => 'ended')
  t.equal(await Promise.race([ended, sleep(5000, 'hangs', { ref: false })]), 'ended')
  await daemon.execute('job-cancel', { id: 'j' })
})
