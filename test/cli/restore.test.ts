// stillpoint restore: to files, devices and exports, judged by cmp and qemu-img; and whom it does not let overwrite what.

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  constants,
  existsSync,
  linkSync,
  mkdirSync,
  openSync,
  closeSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { Images } from '../../src/cli/image/images.ts'
import { openTarget } from '../../src/push/target.ts'
import { Repository } from '../../src/repository/repository.ts'
import { CliWorker } from '../helpers/cli-worker.ts'
import { scratchFolder as onDisk } from '../helpers/control.ts'
import { directMissing } from '../helpers/direct.ts'
import { scratchFolder } from '../helpers/qemu.ts'
import { newRepository, pushDisks, sourceOf } from '../helpers/push-point.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'
import { silent } from '../helpers/s3.ts'
import { MAIN } from '../helpers/stillpoint.ts'
import { attempt, missing, run } from '../helpers/tools.ts'

const CHUNK = 65536
const skip = missing('qemu-img', 'qemu-nbd')

const stack = new AsyncDisposableStack()
t.teardown(() => stack.disposeAsync())
const worker = stack.use(new CliWorker())
const folder = await scratchFolder(stack)
const config = `${folder}/stillpoint.yaml`
const slow = `${folder}/slow.mjs`
writeFileSync(
  config,
  JSON.stringify({
    repositories: {
      local: { plugin: 'file', path: 'backup' },
      broken: { plugin: 'file', path: 'broken' },
      slow: { plugin: slow, path: `${folder}/backup` },
    },
  }),
)
// A store whose packs never come.
writeFileSync(
  slow,
  `import { plugin as file } from ${JSON.stringify(new URL('../../plugins/file/index.js', import.meta.url).href)}
export const plugin = {
  name: 'slow',
  options: { safeParse: data => ({ success: true, data }) },
  open: async (options, context) => {
    const target = await file.open(options, context)
    const get = target.get.bind(target)
    target.get = (key, options = {}) =>
      key.startsWith('packs/')
        ? new Promise((_, reject) => {
            const connection = setTimeout(reject, 60_000) // which keeps the process, as a real one does
            options.signal.addEventListener('abort', () => {
              clearTimeout(connection)
              reject(options.signal.reason)
            })
          })
        : get(key, options)
    return target
  },
}
`,
)

const target = (path: string) => openTarget({ plugin: 'file', path: `${folder}/${path}` }, { log: silent })
const restore = (args: string) => worker.run('restore', 'local', ...args.split(' '), '--config', config)
const path = (name: string) => `${folder}/${name}`

// The second has a length that is no multiple of anything.
const older = { root: diskContent(120 * CHUNK, 1), data: diskContent(9 * CHUNK + 1536 + 7, 2) }
const newer = { root: Buffer.from(older.root), data: older.data }
newer.root.set(randomBytes(1000, 3), 5 * CHUNK + 100)
newer.root.fill(0, 40 * CHUNK, 44 * CHUNK)
const repository: Repository = await newRepository(await target('backup'))
stack.defer(() => repository.target[Symbol.asyncDispose]())
const pushed = async (disks: typeof older) => {
  const { key } = await pushDisks(repository, [
    { name: 'root', source: sourceOf(disks.root) },
    { name: 'data', source: sourceOf(disks.data) },
  ])
  return key.slice('points/'.length)
}
const first = await pushed(older)
const second = await pushed(newer)
writeFileSync(path('older'), older.root)
writeFileSync(path('newer'), newer.root)

const same = async (a: string, b: string, ...more: string[]) => attempt('qemu-img', ['compare', ...more, a, b])

t.test('all disks of a restore point go to a folder, one to a file; raw, qcow2, byte for byte', { skip }, async t => {
  execFileSync('mkdir', [path('all')])
  const all = await restore(`vm/latest --to ${path('all')}`)
  t.match(all, { code: 0, stdout: /root\.raw: root, 7\.5 MiB restored, .* written in [^]*data\.raw: data, 578 KiB/ })
  t.ok(readFileSync(path('all/root.raw')).equals(newer.root))
  t.ok(readFileSync(path('all/data.raw')).equals(newer.data))
  t.equal(statSync(path('all/root.raw')).mode & 0o777, 0o600, 'a disk is its owner’s alone')
  t.ok(statSync(path('all/root.raw')).blocks * 512 < newer.root.length, 'holes are holes')
  t.equal((await restore(`vm/latest --to ${path('all')} --format qcow2`)).code, 0)
  t.match(await same(path('all/root.qcow2'), path('newer')), { code: 0 })
  await run('qemu-img', ['check', path('all/root.qcow2')])

  const one = await restore(`${first} root ${path('one.qcow2')} --json`)
  t.equal(one.code, 0, one.stderr)
  t.match(JSON.parse(one.stdout), { point: first, disk: 'root', size: older.root.length, damaged: [] })
  t.match(await same(path('one.qcow2'), path('older'), '-f', 'qcow2', '-F', 'raw'), { code: 0 })
  const begun = first.slice(0, first.indexOf('T') + 3)
  t.equal((await restore(`${begun} data ${path('data.raw')}`)).code, 0, 'as much of the name as only one has')
  t.ok(readFileSync(path('data.raw')).equals(older.data))
  t.same(
    readdirSync(folder).filter(name => name.endsWith('.partial')),
    [],
  )
})

t.test('a new file is written around the page cache, or through it where its file system cannot do without', async t => {
  await using own = new AsyncDisposableStack()
  const disk = await onDisk(own)
  const [around, inMemory] = [`${disk}/root.raw`, `${disk}/ramfs`]
  const cached = async () => Number((await run('fincore', ['--bytes', '--noheadings', '--output', 'RES', around])).trim())
  t.equal((await restore(`${first} root ${around}`)).code, 0)
  if (!directMissing && !missing('fincore')) t.ok((await cached()) < older.root.length / 2)
  t.ok(readFileSync(around).equals(older.root))

  mkdirSync(inMemory)
  const mounted = await attempt('mount', ['-t', 'ramfs', 'none', inMemory])
  if (mounted.code !== 0) return t.pass('only root may mount what has nothing but the page cache')
  own.defer(() => run('umount', [inMemory]).then(() => undefined))
  t.equal((await restore(`${first} root ${inMemory}/root.raw`)).code, 0)
  t.ok(readFileSync(`${inMemory}/root.raw`).equals(older.root))
})

t.test('in place only what differs is written: to raw, to qcow2', { skip }, async t => {
  writeFileSync(path('back.raw'), newer.root)
  await run('qemu-img', ['convert', '-O', 'qcow2', path('newer'), path('back.qcow2')])
  for (const name of ['back.raw', 'back.qcow2']) {
    const told = await restore(`${first} root ${path(name)} --in-place --json`)
    t.equal(told.code, 0, told.stderr)
    const { written } = JSON.parse(told.stdout) as { written: number }
    t.ok(written > 0 && written <= 5 * CHUNK, `${name}: ${written}`)
    t.match(await same(path(name), path('older')), { code: 0 })
    t.match(JSON.parse((await restore(`${second} root ${path(name)} --in-place --json`)).stdout), { written: CHUNK })
    t.match(await same(path(name), path('newer')), { code: 0 })
  }
  writeFileSync(path('full.raw'), newer.root) // without holes, as a block device shows itself
  t.match(JSON.parse((await restore(`${second} root ${path('full.raw')} --in-place --json`)).stdout), { written: 0, zeroed: 0 })
  t.match(await restore(`${first} root ${path('none')} --in-place`), { code: 1, stderr: /no '.*none' to be restored in place/ })
  writeFileSync(path('odd'), Buffer.concat([Buffer.from('QFI\xfb', 'latin1'), Buffer.alloc(newer.root.length)]))
  t.match(await restore(`${first} root ${path('odd')} --in-place`), { code: 1, stderr: /looks like qcow2: say --format/ })
})

t.test('an NBD export is written where it holds nothing, or where the user says so', { skip }, async t => {
  const socket = path('nbd.sock')
  const disk = path('export.raw')
  writeFileSync(disk, '')
  truncateSync(disk, older.root.length + 4096)
  const server = spawn('qemu-nbd', ['-t', '-f', 'raw', '-k', socket, disk], { stdio: 'ignore' })
  t.teardown(async () => {
    server.kill()
    await once(server, 'exit')
  })
  while (!existsSync(socket)) await sleep(20)
  const uri = `nbd+unix:///?socket=${socket}`
  t.equal((await restore(`${first} root ${uri}`)).code, 0)
  t.ok(readFileSync(disk).subarray(0, older.root.length).equals(older.root))
  t.match(await restore(`${second} root ${uri}`), { code: 11, stderr: /holds data; if it is the right one, say --force/ })
  t.equal((await restore(`${second} root ${uri} --in-place`)).code, 0)
  t.ok(readFileSync(disk).subarray(0, newer.root.length).equals(newer.root))
  t.equal((await restore(`${first} root ${uri} --force`)).code, 0)
  t.ok(readFileSync(disk).subarray(0, older.root.length).equals(older.root))
  t.ok(readFileSync(disk).subarray(older.root.length).equals(Buffer.alloc(4096)), 'what is behind the end is left alone')
})

t.test('what is there stays unless the user says otherwise, and what is in use stays anyway', { skip }, async t => {
  const there = path('there.raw')
  writeFileSync(there, 'mine', { mode: 0o640 })
  t.match(await restore(`${first} root ${there}`), { code: 11, stderr: /is there already; choose another name, --in-place/ })
  t.equal(readFileSync(there, 'utf8'), 'mine')
  const { ino } = statSync(there)
  t.equal((await restore(`${first} root ${there} --force`)).code, 0)
  t.ok(readFileSync(there).equals(older.root))
  t.equal(statSync(there).mode & 0o777, 0o640)
  t.not(statSync(there).ino, ino, 'the old one stayed whole until the new one was')

  const guest = spawn('qemu-nbd', ['-t', '-f', 'raw', '-k', path('guest.sock'), there], { stdio: 'ignore' })
  while (!existsSync(path('guest.sock'))) await sleep(20)
  t.match(await restore(`${second} root ${there} --force`), {
    code: 11,
    stderr: /is in use by qemu-nbd .*, and a restored raw file/,
  })
  t.match(await restore(`${second} root ${there} --in-place`), { code: /^(1|11)$/, stderr: /lock|use/i })
  const offered = `nbd+unix:///?socket=${path('guest.sock')}`
  guest.kill()
  await once(guest, 'exit')
  t.ok(readFileSync(there).equals(older.root))
  const reader = spawn('qemu-nbd', ['-t', '-r', '-f', 'raw', '-k', path('guest.sock'), there], { stdio: 'ignore' })
  while (!existsSync(path('guest.sock'))) await sleep(20)
  t.match(await restore(`${second} root ${offered} --in-place`), { code: 1, stderr: /can only be read: have its server/ })
  reader.kill()
  await once(reader, 'exit')

  await using images = new Images()
  const sharing = images.writer(await images.openWritable({ name: there, format: 'raw' }))
  for (const how of ['--force', '--in-place'])
    t.match(await restore(`${second} root ${there} ${how}`), { code: 11, stderr: /is in use by/ }, 'who writes and lets others')
  await images.graph.detach(sharing)

  mkdirSync(path('some'))
  writeFileSync(path('some/data.raw'), 'mine')
  t.match(await restore(`${first} --to ${path('some')}`), { code: 11, stderr: /data\.raw' is there already/ })
  t.same(readdirSync(path('some')), ['data.raw'], 'no disk is restored before it is known that all can be')
  t.match(await restore(`${first} root /dev/stillpoint-none`), { code: 1, stderr: /no device '\/dev\/stillpoint-none'/ })

  writeFileSync(path('small.raw'), Buffer.alloc(4096))
  t.match(await restore(`${first} root ${path('small.raw')} --in-place`), { code: 1, stderr: /has room for 4096 bytes/ })
  t.match(await restore(`${first} ${path('x')}`), { code: 1, stderr: /has the disks 'root', 'data': say which one/ })
  t.match(await restore(`${first} swap ${path('x')}`), { code: 1, stderr: /has no disk 'swap'; it has 'root', 'data'/ })
  t.match(await restore(`vm ${path('x')}`), { code: 1, stderr: /there is no restore point 'vm'/ })
  t.match(await restore(`vm/2 root ${path('x')}`), { code: 1, stderr: /several restore points begin with 'vm\/2'/ })
  t.match(await restore(first), { code: 2, stderr: /say where to restore to/ })
  t.match(await restore(`${first} root x --to y`), { code: 2, stderr: /either a target or --to/ })
  t.match(await restore(`${first} root ${path('no/such')}`), { code: 1, stderr: /No such file/ })
  t.match(await restore(`${first} root ${folder}`), { code: 1, stderr: /neither a file nor a block device/ })
  t.notOk(existsSync(path('x')))
})

const loop = () => {
  writeFileSync(path('loop.raw'), Buffer.alloc(older.root.length))
  try {
    return execFileSync('losetup', ['-f', '--show', path('loop.raw')], { stdio: 'pipe' })
      .toString()
      .trim()
  } catch {
    return undefined // not root, or no such devices here
  }
}

/** Another process that has it open and does nothing. */
async function openElsewhere(file: string, flags: 'r' | 'r+') {
  const fd = openSync(file, flags)
  const other = spawn('sleep', ['60'], { stdio: ['ignore', 'ignore', 'ignore', fd] })
  await once(other, 'spawn')
  closeSync(fd)
  return {
    sentence: new RegExp(`is in use by sleep \\(process ${other.pid}\\), which may write to it; is it the right one`),
    async close() {
      other.kill()
      await once(other, 'exit')
    },
  }
}

t.test('who writes to a file without a lock keeps it', async t => {
  writeFileSync(path('mine.raw'), older.root)
  const writer = await openElsewhere(path('mine.raw'), 'r+')
  for (const how of ['--force', '--in-place'])
    t.match(await restore(`${second} root ${path('mine.raw')} ${how}`), { code: 11, stderr: writer.sentence }, how)
  await writer.close()
  t.ok(readFileSync(path('mine.raw')).equals(older.root))
})

t.test('a device that only another mount namespace has mounted is in use by who sees it', async t => {
  const works = missing('mkfs.ext4', 'unshare') === false && (await attempt('unshare', ['-m', 'true'])).code === 0
  const device = works ? loop() : undefined
  if (device === undefined) return t.pass('there are no loop devices, file systems or namespaces here')
  t.teardown(() => execFileSync('losetup', ['-d', device]))
  mkdirSync(path('mounted'))
  await run('mkfs.ext4', ['-q', '-F', device])
  const other = spawn('unshare', ['-m', 'sh', '-c', `mount ${device} ${path('mounted')} && echo && read wait`])
  await once(other.stdout, 'data')
  t.match(await restore(`${first} root ${device} --force`), {
    code: 11,
    stderr: /is in use by the file system that sh \(process \d+\) sees mounted at .*mounted, in a mount namespace of its own/,
  })
  other.stdin.end()
  await once(other, 'exit')
})

t.test('a block device is claimed as mount claims it', async t => {
  const device = loop()
  if (device === undefined) return t.pass('there are no loop devices here')
  t.teardown(() => execFileSync('losetup', ['-d', device]))
  t.equal((await restore(`${first} root ${device}`)).code, 0)
  t.ok(readFileSync(device).equals(older.root))
  t.match(await restore(`${second} root ${device}`), { code: 11, stderr: /holds data/ })
  const other = openSync(device, constants.O_RDONLY | constants.O_EXCL)
  t.match(await restore(`${second} root ${device} --force`), { code: 11, stderr: /is in use by .*; is it the right device\?/ })
  closeSync(other)
  t.ok(readFileSync(device).equals(older.root))
  linkSync(path('loop.raw'), path('also.raw'))
  for (const how of ['--force', '--in-place'])
    for (const name of ['loop.raw', 'also.raw'])
      t.match(
        await restore(`${second} root ${path(name)} ${how}`),
        { code: 11, stderr: /is what .*loop\d+ shows/ },
        `${name} ${how}`,
      )
  const writer = await openElsewhere(device, 'r+')
  const reader = await openElsewhere(device, 'r')
  for (const how of ['--force', '--in-place'])
    t.match(await restore(`${second} root ${device} ${how}`), { code: 11, stderr: writer.sentence }, `without a lock, ${how}`)
  await writer.close()
  t.ok(readFileSync(device).equals(older.root))
  t.equal((await restore(`${second} root ${device} --force`)).code, 0)
  await reader.close()
  t.ok(readFileSync(device).equals(newer.root))
  execFileSync('blockdev', ['--setro', device])
  t.teardown(() => execFileSync('blockdev', ['--setrw', device])) // it would outlive the file
  t.match(await restore(`${first} root ${device} --force`), { code: 1, stderr: /is read-only; .*Nothing was written/ })
})

const restoreBroken = (args: string) => worker.run('restore', 'broken', 'vm/latest', ...args.split(' '), '--config', config)

t.test('what is damaged ends the restore without a trace, or is left out and said', async t => {
  const broken = await newRepository(await target('broken'))
  await pushDisks(broken, [{ name: '../root', source: sourceOf(older.root) }])
  const pack = readdirSync(path('broken/packs'), { recursive: true, withFileTypes: true }).find(entry => entry.isFile())!
  const file = `${pack.parentPath}/${pack.name}`
  const disks = [older, { root: randomBytes(older.data.length, 9) }].map(({ root }, at) => ({
    name: `disk${at}`,
    source: sourceOf(root),
  }))
  await pushDisks(broken, disks, { machine: 'several' })
  truncateSync(file, statSync(file).size >> 1)
  t.match(await restoreBroken(path('gone.raw')), { code: 21, stderr: /'.*gone.raw' was not made/ })
  t.notOk(existsSync(path('gone.raw')) || existsSync(path('gone.raw.partial')))
  t.match(await restoreBroken(`${path('part.raw')} --skip-damaged`), {
    code: 21,
    stdout: /damaged: .* of it could not be had[^]*bytes at \d+/,
  })
  const { damaged } = JSON.parse((await restoreBroken(`${path('part2.raw')} --skip-damaged --json`)).stdout) as {
    damaged: { offset: number; length: number }[]
  }
  const found = readFileSync(path('part2.raw'))
  for (const { offset, length } of damaged) found.set(older.root.subarray(offset, offset + length), offset)
  t.ok(damaged.length > 0 && found.equals(older.root), 'all but what it says is there')
  mkdirSync(path('rest'))
  t.match(await worker.run('restore', 'broken', 'several/latest', '--to', path('rest'), '--config', config), {
    code: 21,
    stdout: /disk1\.raw: disk1, /,
    stderr: /disk0\.raw' was not made[^]*--skip-damaged[^]*Why: [^]*1 of 2 disks could not be restored/,
  })
  t.same(readdirSync(path('rest')), ['disk1.raw'], 'one that is damaged keeps no other from being restored')
  t.match(await restoreBroken(`--to ${folder}`), { code: 1, stderr: /has a name that no file can have/ })
})

t.test('a signal ends it, and leaves neither a part of a disk nor a session', async t => {
  const child = spawn(process.execPath, [MAIN, 'restore', 'slow', 'vm/latest', 'root', path('never.raw'), '--config', config])
  const exit = once(child, 'exit')
  let said = ''
  child.stderr.on('data', (data: Buffer) => (said += data.toString()))
  const sessions = () => readdirSync(path('backup/sessions')).filter(name => !name.startsWith('.'))
  while (!existsSync(path('never.raw.partial'))) await sleep(20)
  await sleep(100)
  t.equal(sessions().length, 1)
  child.kill('SIGTERM')
  t.same(await exit, [143, null], said)
  t.match(said, /'.*never.raw' was not made[^]*stopped by SIGTERM/)
  t.notOk(existsSync(path('never.raw')) || existsSync(path('never.raw.partial')))
  t.same(sessions(), [])
})
