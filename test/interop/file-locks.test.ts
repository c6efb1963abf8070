// Locks on image files, with QEMU's programs on the other side: they and the daemon refuse each other exactly as two of QEMU's do.

import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { native } from '../../src/base/native.ts'
import { qsdMissing } from '../helpers/qemu-storage-daemon.ts'
import { Side } from '../helpers/side.ts'
import { qmp as command } from '../helpers/scenario.ts'
import { environment, WHOLE } from '../helpers/stillpoint.ts'
import { attempt, missing } from '../helpers/tools.ts'

const skip = qsdMissing || missing('qemu-img', 'qemu-io') || (!native && 'koffi does not load here')

const qemuImg = (...args: string[]) => attempt('qemu-img', args)

/** The bytes of a file that any process has locked. */
function lockedBytes(path: string): number[] {
  const { ino } = statSync(path)
  const bytes = new Set<number>()
  for (const line of readFileSync('/proc/locks', 'utf8').split('\n')) {
    const [, inode, first, last] = /^\d+: OFDLCK .*:(\d+) (\d+) (\d+)$/.exec(line) ?? []
    if (Number(inode) !== ino) continue
    for (let byte = Number(first); byte <= Number(last); byte++) bytes.add(byte)
  }
  return [...bytes].toSorted((a, b) => a - b)
}

const images = {
  'disk.raw': { size: '1M' },
  'base.qcow2': { size: '1M', format: 'qcow2' },
  'disk.qcow2': { size: '1M', format: 'qcow2', backing: 'base.qcow2' },
  'target.raw': { size: '1M' },
} as const

const fileNode = (name: string, more: object = {}) => ({ driver: 'file', filename: `$D/${name}`, ...more })
const exported = (id: string, writable: boolean) =>
  command('block-export-add', { type: 'nbd', id, 'node-name': 'n', name: id, writable })
const server = command('nbd-server-start', { addr: { type: 'unix', data: { path: '$D/nbd.sock' } } })
const add = (options: object) => command('blockdev-add', options)

/** Steps after each of which the locks must be the same. */
const courses: Record<string, readonly ReturnType<typeof command>[]> = {
  'a file that nobody uses': [add(fileNode('disk.raw', { 'node-name': 'n' }))],
  'raw, exported and not any more': [
    server,
    add({ driver: 'raw', 'node-name': 'n', file: fileNode('disk.raw') }),
    exported('r', false),
    exported('w', true),
    command('block-export-del', { id: 'r' }),
    command('block-export-del', { id: 'w' }),
    command('blockdev-del', { 'node-name': 'n' }),
  ],
  'raw, read-only': [
    server,
    add({ driver: 'raw', 'node-name': 'n', 'read-only': true, file: fileNode('disk.raw') }),
    exported('r', false),
  ],
  'qcow2 with what is behind it': [
    server,
    add({ driver: 'qcow2', 'node-name': 'n', file: fileNode('disk.qcow2') }),
    exported('r', false),
    exported('w', true),
    command('block-export-del', { id: 'w' }),
  ],
  'qcow2, read-only': [add({ driver: 'qcow2', 'node-name': 'n', 'read-only': true, file: fileNode('disk.qcow2') })],
  'force-share': [
    server,
    add({ driver: 'qcow2', 'node-name': 'n', 'read-only': true, 'force-share': true, file: fileNode('disk.qcow2') }),
    exported('r', false),
  ],
  'locking: off': [
    server,
    add({ driver: 'raw', 'node-name': 'n', file: fileNode('disk.raw', { locking: 'off' }) }),
    exported('w', true),
  ],
  'a fleecing': [
    server,
    add({ driver: 'raw', 'node-name': 'n', file: fileNode('disk.raw') }),
    add({ driver: 'raw', 'node-name': 't', file: fileNode('target.raw') }),
    add({ driver: 'copy-before-write', 'node-name': 'cbw', file: 'n', target: 't' }),
    command('blockdev-del', { 'node-name': 'cbw' }),
  ],
}

t.test('the bytes we lock are those that qemu-storage-daemon locks, at every step', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const [ours, qemu] = [stack.use(await Side.ours()), stack.use(await Side.qemu())]
  for (const [name, steps] of Object.entries(courses)) {
    await Promise.all([ours.begin(images), qemu.begin(images)])
    for (const step of steps) {
      const answers = await Promise.all([ours.do(step), qemu.do(step)])
      t.same(answers[0], answers[1], `${name}: it is answered alike`)
      for (const image of ['disk.raw', 'base.qcow2', 'disk.qcow2'])
        t.same(
          lockedBytes(join(ours.folder, image)),
          lockedBytes(join(qemu.folder, image)),
          `${name}: ${image} after ${JSON.stringify(step)}`,
        )
    }
    t.ok((await ours.end()) && (await qemu.end()))
  }
})

t.test("QEMU's programs do not get at an image that we use, and get at it when we are gone", { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const ours = stack.use(await Side.ours())
  await ours.begin(images)
  const path = join(ours.folder, 'disk.qcow2')
  await ours.do(add({ driver: 'qcow2', 'node-name': 'n', file: fileNode('disk.qcow2') }))

  const refused = /Failed to get shared "write" lock\nIs another process using the image/
  for (const args of [
    ['info', path],
    ['check', path],
    ['compare', path, path],
    ['convert', '-O', 'raw', path, `${path}.copy`],
    ['map', path],
  ]) {
    const { code, stderr } = await qemuImg(...args)
    t.not(code, 0, args.join(' '))
    t.match(stderr, refused)
  }
  t.match((await qemuImg('resize', path, '2M')).stderr, /Failed to get "write" lock/)
  t.match((await attempt('qemu-io', ['-c', 'write 0 512', path])).stderr, /Failed to get "write" lock/)
  for (const args of [
    ['info', '-U', path],
    ['compare', '-U', path, path],
    ['convert', '-U', '-O', 'raw', path, `${path}.copy`],
    ['map', '-U', path],
  ])
    t.equal((await qemuImg(...args)).code, 0, `${args[0]} -U`)
  t.equal((await qemuImg('info', join(ours.folder, 'base.qcow2'))).code, 0, 'a backing file is read by others too')
  t.match((await qemuImg('resize', join(ours.folder, 'base.qcow2'), '2M')).stderr, /Failed to get "write" lock/)

  await ours.do(command('blockdev-del', { 'node-name': 'n' }))
  await ours.do(add({ driver: 'qcow2', 'node-name': 'n', 'read-only': true, file: fileNode('disk.qcow2') }))
  t.equal((await qemuImg('check', path)).code, 0, 'readers do not mind each other')
  t.match((await qemuImg('resize', path, '2M')).stderr, /Failed to get "write" lock/)
  await ours.do(command('blockdev-del', { 'node-name': 'n' }))

  await ours.do(add({ driver: 'qcow2', 'node-name': 'n', file: fileNode('disk.qcow2') }))
  t.match((await qemuImg('check', path)).stderr, refused)
  await ours.kill()
  t.equal((await qemuImg('check', path)).code, 0, 'a lock goes with who holds it, also when that is killed')
})

t.test("we do not get at an image that QEMU's programs, or another of ours, use, and say who it is", { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const [ours, qemu, another] = [stack.use(await Side.ours()), stack.use(await Side.qemu()), stack.use(await Side.ours())]
  const first = { driver: 'qcow2', 'node-name': 'n' }
  for (const [holder, who] of [
    [qemu, /qemu-storage-da\w* \(process \d+\)/],
    [another, /stillpoint.* \(process \d+\)/],
  ] as const) {
    await holder.begin(images)
    await ours.begin(images)
    const path = join(holder.folder, 'disk.qcow2')
    const ourNode = (more: object = {}) => ({
      driver: 'qcow2',
      'node-name': 'n',
      file: { driver: 'file', filename: path },
      ...more,
    })
    await holder.do(add({ ...first, file: fileNode('disk.qcow2') }))
    const writer = JSON.stringify(await ours.do(add(ourNode())))
    t.match(writer, /Failed to get \\"write\\" lock: the image .*disk\.qcow2' is used by /)
    t.match(writer, who)
    t.match(JSON.stringify(await ours.do(add(ourNode({ 'read-only': true })))), /Failed to get shared \\"write\\" lock/)
    t.same(await ours.do(add(ourNode({ 'read-only': true, 'force-share': true }))), { return: {} })
    await ours.do(command('blockdev-del', { 'node-name': 'n' }))
    t.same(lockedBytes(path), [100, 101, 103, 201, 203], 'a refused node leaves no lock')

    await holder.do(command('blockdev-del', { 'node-name': 'n' }))
    await holder.do(add({ ...first, 'read-only': true, file: fileNode('disk.qcow2') }))
    t.same(await ours.do(add(ourNode({ 'read-only': true }))), { return: {} }, 'two readers')
    await ours.do(command('blockdev-del', { 'node-name': 'n' }))
    t.match(JSON.stringify(await ours.do(add(ourNode()))), /Failed to get \\"write\\" lock/)
    await holder.do(command('blockdev-del', { 'node-name': 'n' }))
    t.same(await ours.do(add(ourNode())), { return: {} })
    await ours.do(command('blockdev-del', { 'node-name': 'n' }))
    await holder.end()
  }
})

t.test('a backup of what another process writes is refused before it begins, and changes no lock', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const [ours, qemu] = [stack.use(await Side.ours()), stack.use(await Side.qemu())]
  await qemu.begin(images)
  await ours.begin(images)
  const path = join(qemu.folder, 'disk.raw')
  await qemu.do(server)
  await qemu.do(add({ driver: 'raw', 'node-name': 'n', file: fileNode('disk.raw') }))
  await qemu.do(exported('w', true))
  await ours.do(add({ driver: 'raw', 'node-name': 'n', file: { driver: 'file', filename: path } }))
  await ours.do(add({ driver: 'raw', 'node-name': 't', file: fileNode('target.raw') }))
  const before = lockedBytes(path)
  const backup = { 'job-id': 'j', device: 'n', target: 't', sync: 'full' }
  t.match(JSON.stringify(await ours.do(command('blockdev-backup', backup))), /Failed to get shared \\"write\\" lock/)
  t.same(lockedBytes(path), before)
  await qemu.do(command('block-export-del', { id: 'w' }))
  t.same(await ours.do(command('blockdev-backup', backup)), { return: {} })
})

t.test('without native help images are used without locks, and the log says so once', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const side = stack.use(await Side.ours({ STILLPOINT_NATIVE: 'off' }))
  await side.begin(images)
  await side.do(server)
  for (const step of [add({ driver: 'raw', 'node-name': 'n', file: fileNode('disk.raw') }), exported('w', true)])
    t.same(await side.do(step), { return: {} })
  t.same(lockedBytes(join(side.folder, 'disk.raw')), [])
  t.match(
    JSON.stringify(await side.do(add(fileNode('target.raw', { 'node-name': 'l', locking: 'on' })))),
    /files cannot be locked here \(STILLPOINT_NATIVE=off is set\)/,
  )
  const { stderr } = await attempt(process.execPath, [WHOLE, '--version'], { env: environment({ STILLPOINT_NATIVE: 'off' }) })
  t.equal(stderr, '', 'who has nothing to do with images is not told')
  const said = await side.stop()
  t.equal([...said.matchAll(/image files are not locked/g)].length, 1, said)
})
