// `stillpoint disk map` of what qemu-nbd serves, with qemu-img and nbdinfo as judges.

import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { scriptedDaemon } from '../helpers/scripted-daemon.ts'
import { stillpoint } from '../helpers/stillpoint.ts'
import { missing, run } from '../helpers/tools.ts'

/** A qcow2 image of 64 MiB with data, zeroes, holes and a bitmap, served by qemu-nbd as `more/root`; and a daemon that says so. */
async function world(stack: AsyncDisposableStack) {
  const nbd: object[] = []
  const disks = [{ disk: 'root', export: 'more/root', size: 64 << 20, bitmap: 'backup-root' }]
  const daemon = await scriptedDaemon(stack, {
    'query-daemon': { nbd },
    'query-machines': [{ name: 'db', disks: [{ name: 'root', export: 'db/root', size: 1 << 20 }], sessions: ['more'] }],
    'query-backups': [{ name: 'more', machine: 'db', disks }],
  })
  const image = `${daemon.folder}/image.qcow2`
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, '64M'])
  await run('qemu-io', ['-c', 'write -P 1 1M 3M', '-c', 'write -z 8M 1M', image])
  await run('qemu-img', ['bitmap', '--add', image, 'backup-root'])
  await run('qemu-io', ['-c', 'write -P 2 2M 64k', image])
  await run('qemu-img', ['bitmap', '--add', image, 'later'])
  await run('qemu-io', ['-c', 'write -P 2 32M 128k', image])
  const socket = `${daemon.folder}/nbd.sock`
  const options = [
    '--persistent',
    '--read-only',
    '--shared=4',
    '--socket',
    socket,
    '--bitmap',
    'backup-root',
    '--bitmap',
    'later',
  ]
  const server = spawn('qemu-nbd', [...options, '--export-name', 'more/root', image], { stdio: 'ignore' })
  const gone = new Promise<void>(resolve => server.once('exit', () => resolve()))
  stack.defer(() => {
    server.kill()
    return gone
  })
  for (let tries = 0; !existsSync(socket) && tries < 200; tries++) await sleep(25)
  nbd.push({ type: 'unix', path: socket })
  return {
    uri: `nbd+unix:///more/root?socket=${socket}`,
    map: (...args: string[]) => stillpoint(['disk', 'map', ...args], { env: { STILLPOINT_SOCKET: daemon.socket } }),
  }
}

t.test('a map reads as qemu-img and nbdinfo read it', { skip: missing('qemu-nbd', 'qemu-img', 'nbdinfo') }, async t => {
  await using stack = new AsyncDisposableStack()
  const { uri, map } = await world(stack)

  await t.test('--json is byte for byte what qemu-img map says', async t => {
    const ours = await map('more/root', '--json')
    t.same([ours.code, ours.stderr], [0, ''])
    t.equal(ours.stdout, await run('qemu-img', ['map', '--output=json', uri]))
  })

  await t.test('--bitmap adds what the bitmap says, as nbdinfo reads it', async t => {
    const ours = await map('more/root', '--bitmap', 'backup-root', '--json')
    t.equal(ours.code, 0, ours.stderr)
    const ranges = JSON.parse(ours.stdout) as { start: number; length: number; dirty: boolean }[]
    const theirs = JSON.parse(await run('nbdinfo', ['--json', '--map=qemu:dirty-bitmap:backup-root', uri]))
    const dirty = theirs.filter(({ type }: { type: number }) => type === 1)
    t.same(
      ranges.filter(({ dirty }) => dirty).map(({ start, length }) => [start, length]),
      dirty.map(({ offset, length }: { offset: number; length: number }) => [offset, length]),
    )
    t.equal(
      ranges.reduce((total, { length }) => total + length, 0),
      64 << 20,
    )
  })

  await t.test('any export is mapped, a part of it, with several bitmaps side by side', async t => {
    const both = ['--bitmap', 'backup-root', '--bitmap', 'later']
    const ours = await map(uri, ...both, '--offset', '2M', '--length', '40M', '--json')
    t.equal(ours.code, 0, ours.stderr)
    const ranges = JSON.parse(ours.stdout) as { start: number; length: number; data: boolean; bitmaps: Record<string, boolean> }[]
    t.same(
      ranges.map(({ start, length, data, bitmaps }) => [
        start / 1024,
        length / 1024,
        data,
        bitmaps['backup-root'],
        bitmaps['later'],
      ]),
      [
        [2048, 64, true, true, false],
        [2112, 1984, true, false, false],
        [4096, 28_672, false, false, false],
        [32_768, 128, true, true, true],
        [32_896, 10_112, false, false, false],
      ],
    )
    const people = await map(uri, ...both, '--offset', '32M', '--length', '1M')
    t.equal(
      people.stdout,
      `   START    LENGTH      SIZE  CONTENT  backup-root  later
33554432    131072   128 KiB  data     changed      changed
33685504    917504   896 KiB  hole     -            -

  BYTES     SIZE  SHARE  CONTENT
 131072  128 KiB   13 %  data
 917504  896 KiB   88 %  hole
 131072  128 KiB   13 %  changed, backup-root
 131072  128 KiB   13 %  changed, later
1048576    1 MiB  100 %  total, 2 ranges
`,
    )
    const wrong = await Promise.all([map(uri, '--offset', '65M'), map(uri, '--length', 'x'), map('nbd://127.0.0.1:1/')])
    t.match(wrong, [
      { code: 1, stderr: /--offset 68157440 is behind the end of .*, which is at 67108864/ },
      { code: 2, stderr: /--length must be a size such as/ },
      { code: 1, stderr: /nbd:\/\/127.0.0.1:1\/: no connection to/ },
    ])
  })

  await t.test('people read ranges with sizes, and totals', async t => {
    const { code, stdout } = await map('more/root')
    t.equal(code, 0)
    t.equal(
      stdout,
      `   START    LENGTH      SIZE  CONTENT
       0   1048576     1 MiB  hole
 1048576   3145728     3 MiB  data
 4194304  29360128    28 MiB  hole
33554432    131072   128 KiB  data
33685504  33423360  31.9 MiB  hole

   BYTES      SIZE  SHARE  CONTENT
63832064  60.9 MiB   95 %  hole
 3276800  3.13 MiB    5 %  data
67108864    64 MiB  100 %  total, 5 ranges
`,
    )
    const changed = (await map('more/root', '--bitmap', 'backup-root')).stdout
    t.match(changed, /\n 2097152     65536    64 KiB  data     changed\n/)
    t.match(changed, /\n  196608   192 KiB    1 %  changed\n/)
  })

  await t.test('what is not there is said, with what is', async t => {
    const [export_, bitmap, refused] = await Promise.all([
      map('more/rot'),
      map('more/root', '--bitmap', 'mine'),
      map('db/root'), // known, and not served by this qemu-nbd
    ])
    t.match(export_, { code: 1, stdout: '', stderr: /called more\/rot; did you mean more\/root\?\n$/ })
    t.match(bitmap, {
      code: 1,
      stdout: '',
      stderr: /^stillpoint: The export more\/root has no bitmap mine; it has: later, backup-root\n$/,
    })
    t.match(refused, { code: 1, stdout: '', stderr: /^stillpoint: db\/root: .*\n$/ })
  })
})
