// stillpoint doctor: each finding in a state in which it is good, and in one in which it is not; and what it says mends it, mends it.

import { chmodSync, mkdirSync, readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { open } from 'node:fs/promises'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { delimiter, join } from 'node:path'
import t from 'tap'
import { Appliance } from '../../src/appliance.ts'
import { createLog } from '../../src/base/log.ts'
import { native } from '../../src/base/native.ts'
import { loadSettings } from '../../src/settings/load.ts'
import { scratchFolder } from '../helpers/control.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { ScriptedS3 } from '../helpers/scripted-s3.ts'
import { CliWorker } from '../helpers/cli-worker.ts'
import { StillpointFunction } from '../helpers/guide.ts'
import { attempt, missing, run } from '../helpers/tools.ts'

interface Line {
  readonly name: string
  readonly of?: string
  readonly health: string
  readonly found: string
  readonly costs?: string
  readonly mend?: string
}

const lines = (stdout: string) =>
  stdout
    .trim()
    .split('\n')
    .map(line => JSON.parse(line) as Line)

/** The program, for us and for the shells that are told to mend something; no daemon answers where it looks by itself. */
process.env['TEST_DOCTOR_SECRET'] = 'hush'
const program = new StillpointFunction({ socket: '/nonexistent/control.sock' })
t.teardown(() => program[Symbol.asyncDispose]())
const prelude = await program.listen()

t.test(
  'where nothing is wrong the doctor says so, and exits with 0',
  { skip: !native && 'koffi does not load here' },
  async t => {
    const { code, stdout } = await program.run('doctor')
    t.equal(code, 0, stdout)
    t.match(
      stdout,
      /^ok +Node\.js: v\d+.*\nok +system calls that Node lacks: koffi is loaded\nok +locks on image files: they work/,
    )
    const json = await program.run('doctor', '--json')
    t.same(
      lines(json.stdout).map(({ name, health }) => `${name} ${health}`),
      ['node good', 'native good', 'file-locks good'],
    )
  },
)

t.test('what is missing is told with what it costs and what mends it, and the exit code is 4', async t => {
  await using without = new CliWorker({ STILLPOINT_NATIVE: 'off' })
  const { code, stdout } = await without.run('doctor', '--json')
  t.equal(code, 4)
  const wrong = lines(stdout).filter(({ health }) => health !== 'good')
  t.same(
    wrong.map(({ name }) => name),
    ['native', 'file-locks'],
  )
  for (const { name, costs, mend } of wrong) t.ok(costs && mend, name)
  t.equal(wrong[0]!.mend, 'unset STILLPOINT_NATIVE')
  const text = await without.run('doctor')
  t.match(text.stdout, /\nwarning +system calls that Node lacks: .*\n +costs: .*\n +mend: +unset STILLPOINT_NATIVE\n/)
})

/** A configuration with much that is wrong. */
async function patient(stack: AsyncDisposableStack, endpoint: string) {
  const folder = await scratchFolder(stack)
  const file = join(folder, 's.yaml')
  writeFileSync(join(folder, 'root.raw'), randomBytes(256 << 10, 1))
  truncateSync(join(folder, 'root.raw'), 1 << 20)
  const write = (more = '') =>
    writeFileSync(
      file,
      `state: ./state
control: { socket: ./control.sock }
nbd: [ { unix: ./nbd.sock } ]
machines:
  db: { disks: { root: { image: ./root.raw, format: raw } } }
${more}repositories:
  local: { plugin: file, path: ./backup }
  far: { plugin: s3, endpoint: "${endpoint}", bucket: bucket, access-key: k, secret-key: "env:TEST_DOCTOR_SECRET", retry: 1s }
scratch: { limit: 1000T }
schedules:
  nightly: { machines: [db], repository: local }
`,
    )
  write()
  const examine = async () => {
    const { code, stdout, stderr } = await program.run('doctor', '--json', '--config', file)
    if (stderr !== '') throw new Error(stderr)
    const all = lines(stdout).filter(({ name }) => name !== 'native' && name !== 'file-locks')
    return {
      code,
      all,
      wrong: all.filter(({ health }) => health !== 'good').map(({ name, of }) => (of === undefined ? name : `${name} ${of}`)),
      find: (wanted: string) => all.find(({ name, of }) => (of === undefined ? name : `${name} ${of}`) === wanted)!,
    }
  }
  const programs = join(folder, 'bin')
  mkdirSync(programs)
  /** As somebody who pastes it; what is in brackets behind it is for people. */
  const follow = ({ mend = '' }: Line) =>
    run('bash', ['-ec', `${prelude}\n${mend.replace(/ \([^)]*\)$/, '')}`], {
      env: { PATH: `${programs}${delimiter}${process.env['PATH']}` },
      cwd: folder,
      timeoutMs: 60_000,
    })
  return { folder, file, programs, write, examine, follow }
}

t.test('what the doctor says mends a finding, and then it is found no more', async t => {
  await using stack = new AsyncDisposableStack()
  const store = stack.use(await ScriptedS3.listen())
  const { folder, file, examine, follow } = await patient(stack, store.endpoint)

  const first = await examine()
  t.equal(first.code, 1)
  t.same(first.wrong, ['scratch', 'schedules nightly', 'repositories local', 'repositories far'])
  for (const { found, costs, mend, health } of first.all) if (health !== 'good') t.ok(costs && mend, found)
  for (const what of first.wrong) {
    const { mend } = first.find(what)
    t.match(mend, /^(mkdir|stillpoint repo init)/)
    await follow(first.find(what))
  }
  t.same((await examine()).wrong, [])

  await using daemon = await Appliance.start(await loadSettings(file), createLog('silent'))
  const control = ['--socket', join(folder, 'control.sock')]
  chmodSync(join(folder, 'control.sock'), 0o666)
  chmodSync(folder, 0o777)
  const pushed = await program.run(...control, 'backup', 'start', 'db', '--push', 'local')
  t.equal(pushed.code, 0, pushed.stderr)
  const added = await program.run(
    ...control,
    'qmp',
    'block-dirty-bitmap-add',
    JSON.stringify({ node: 'db.root', name: 'checkpoint-forgotten', persistent: true }),
  )
  t.equal(added.code, 0, added.stderr)
  const second = await examine()
  t.equal(second.code, 4)
  t.same(second.wrong, ['sockets control', 'sockets nbd', 'bitmaps db', 'repositories local'])
  t.match(second.find('sockets control').found, /may be written by everybody/)
  await follow(second.find('sockets control'))
  const third = await examine()
  t.match(third.find('sockets control'), { health: 'warning', found: /may be opened by everybody \(mode 666\)/ })
  t.match(third.find('bitmaps db').found, /root: 'checkpoint-forgotten' belongs to no checkpoint/)
  t.equal(third.find('repositories local').found, 'it was never verified')
  for (const what of third.wrong) await follow(third.find(what))
  const last = await examine()
  t.same([last.wrong, last.code], [[], native ? 0 : 4])
  t.match(last.find('repositories local').found, /verified .* ago/)
  t.match((await program.run('doctor', '--config', file)).stdout, /\nok +bitmaps of checkpoints, db: all of them are there\n/)

  // Damage, and the long way back: the push stores anew what is in the pack that is not to be relied on.
  const config = ['--config', file]
  const packs = join(folder, 'backup', 'packs')
  const sizes = readdirSync(packs, { recursive: true, encoding: 'utf8' }).map(
    path => [statSync(join(packs, path)), join(packs, path)] as const,
  )
  const [, pack] = sizes.filter(([stat]) => stat.isFile()).sort(([a], [b]) => b.size - a.size)[0]!
  const bytes = readFileSync(pack)
  bytes[bytes.length >> 1]! ^= 1
  chmodSync(pack, 0o600)
  writeFileSync(pack, bytes)
  t.equal((await program.run('repo', 'check', 'local', '--level', 'scrub', ...config)).code, 21)
  const damaged = (await examine()).find('repositories local')
  t.match(damaged, {
    health: 'bad',
    found: /the last check \(scrub\) has found damage/,
    mend: /--quarantine .*\(the next backups/,
  })
  await t.rejects(follow(damaged), /exit code 21/, 'there is damage still')
  t.equal((await program.run(...control, 'backup', 'start', 'db', '--push', 'local')).code, 0)
  // What is found by one run is deleted by a later one.
  for (let run = 0; run < 3; run++) t.equal((await program.run('repo', 'gc', 'local', '--grace', '1ms', ...config)).code, 0)
  const healed = await program.run('repo', 'check', 'local', '--level', 'scrub', ...config)
  t.equal(healed.code, 0, healed.stdout)
  t.match((await examine()).find('repositories local'), { health: 'good' })
  void daemon
})

t.test('images that are missing, old or damaged are told, and how to mend them', { skip: missing('qemu-img') }, async t => {
  await using stack = new AsyncDisposableStack()
  const { folder, write, examine, follow, file } = await patient(stack, 'http://127.0.0.1:1')
  const image = (name: string) => join(folder, name)
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', 'compat=0.10', image('old.qcow2'), '1M'])
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image('bad.qcow2'), '1M'])
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image('foreign.qcow2'), '1M'])
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image('good.qcow2'), '1M'])
  const disks = ['old', 'bad', 'foreign', 'good', 'none'].map(name => `${name}: { image: ./${name}.qcow2, format: qcow2 }`)
  write(`  vm: { disks: { ${disks.join(', ')} } }\n`)
  const featureOf = async (name: string, byte: number, value: number) => {
    await using file = await open(image(name), 'r+')
    await file.write(Buffer.from([value]), 0, 1, 72 + byte)
  }
  await featureOf('bad.qcow2', 7, 2) // marked as corrupt
  await featureOf('foreign.qcow2', 0, 0x40) // that nobody knows
  const { find, code } = await examine()
  t.equal(code, 1)
  t.match(find('images vm/old'), { health: 'warning', mend: /^qemu-img amend -f qcow2 -o compat=1\.1 / })
  t.match(find('images vm/bad'), { health: 'bad', mend: `stillpoint image check -r all ${image('bad.qcow2')}` })
  t.match(find('images vm/foreign'), {
    health: 'bad',
    found: /Unsupported qcow2 feature/,
    mend: /^qemu-img convert .*\(by a QEMU/,
  })
  t.match(find('images vm/good'), { health: 'good' })
  t.match(find('images vm/none'), { health: 'bad', found: /No such file/, mend: /machines\.vm\.disks\.none\.image/ })
  for (const what of ['images vm/old', 'images vm/bad']) await follow(find(what))
  const mended = await examine()
  for (const what of ['images vm/old', 'images vm/bad']) t.match(mended.find(what), { health: 'good' })
  t.match(mended.find('repositories far'), { health: 'bad', costs: /fail/ })

  writeFileSync(file, 'machines: { db: }\ncolour: red\n')
  const broken = await program.run('doctor', '--config', file)
  t.equal(broken.code, 1)
  t.match(
    broken.stdout,
    /BAD +configuration: .*s\.yaml:\d+:\d+: .*\n +costs: .*\n +mend: +mend the file; then: stillpoint daemon --check/,
  )
})

t.test('a secret that everybody may read is told, and is good when that is mended', async t => {
  await using stack = new AsyncDisposableStack()
  const { folder, follow } = await patient(stack, 'http://127.0.0.1:1')
  const [file, key] = [join(folder, 'secret.yaml'), join(folder, 'the key')]
  writeFileSync(key, 'hush\n')
  writeFileSync(file, `notify: [ { webhook: "file:${key}" } ]\n`)
  const finding = async () => {
    const { stdout } = await program.run('doctor', '--json', '--config', file)
    return lines(stdout).find(({ name }) => name === 'secrets')
  }
  chmodSync(key, 0o644)
  const open = await finding()
  t.match(open, { of: 'notify[1].webhook', health: 'warning', found: /may be used by everybody \(mode 644\)/ })
  await follow(open!)
  t.match(await finding(), { health: 'good', found: /mode 640/ })
})

t.test('where there is no room for the bitmaps of an image, they are put elsewhere', async t => {
  await using stack = new AsyncDisposableStack()
  const { folder, write, examine, follow } = await patient(stack, 'http://127.0.0.1:1')
  const small = join(folder, 'small')
  mkdirSync(small)
  const mounted = await attempt('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', small])
  if (mounted.code !== 0) return void t.pass(`no file system can be mounted here: ${mounted.stderr}`)
  stack.defer(async () => void (await run('umount', [small])))
  writeFileSync(join(folder, 'data.raw'), Buffer.alloc(4096))
  write('  vm: { disks: { data: { image: ./data.raw, format: raw, bitmaps: ./small/bitmaps.qcow2 } } }\n')
  const finding = (await examine()).find('images vm/data')
  t.match(finding, { health: 'warning', found: /are left in .*small/, costs: /reads everything/ })
  await follow(finding)
  t.match((await examine()).find('images vm/data'), { health: 'good' })
})

t.test('what an S3 store does not do, and a clock that is wrong, are told', async t => {
  await using stack = new AsyncDisposableStack()
  const limits: { create?: 'ignored'; swap?: 'ignored' } = {}
  const store = stack.use(await ScriptedS3.listen(limits))
  const { examine, follow, file } = await patient(stack, store.endpoint)
  const made = await program.run('repo', 'init', 'far', '--config', file)
  t.equal(made.code, 0, made.stderr)
  t.match((await examine()).find('repositories far'), { health: 'good', found: /: empty$/ })
  Object.assign(limits, { create: 'ignored', swap: 'ignored' })
  t.match((await examine()).find('repositories far'), {
    health: 'bad',
    found: /does not compare and swap any more: .*ignores it/,
  })

  // One that never could, and belongs to somebody else.
  store.objects.clear()
  await program.run('repo', 'init', 'far', '--config', file)
  const owner = JSON.stringify({ version: 1, id: 'x'.repeat(32), host: 'elsewhere', since: '2026-01-01T00:00:00.000Z' })
  store.objects.set('owner', { body: Buffer.from(owner), tag: 'x', headers: {} })
  const owned = (await examine()).find('repositories far')
  t.match(owned, { health: 'warning', found: /that is elsewhere/, mend: /^stillpoint repo take-over far/ })
  await follow(owned)
  t.match((await examine()).find('repositories far'), { health: 'good', found: /one host may write to it/ })
})

t.test('a clock that an S3 store would refuse is told, and is good when it is set', async t => {
  await using stack = new AsyncDisposableStack()
  let ahead = 20 * 60_000
  const server = createServer(({ url }, response) => {
    if (url === '/set-ntp') ahead = 0
    response.setHeader('Date', new Date(Date.now() - ahead).toUTCString())
    response.writeHead(403).end()
  }).listen(0, '127.0.0.1')
  stack.defer(() => void server.close())
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const { examine, follow, programs } = await patient(stack, `http://127.0.0.1:${port}`)
  // The one of this machine is not ours to set.
  const call = `exec 3<>/dev/tcp/127.0.0.1/${port}; printf 'GET /set-ntp HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3`
  writeFileSync(join(programs, 'timedatectl'), `#!/bin/bash\n[ "$*" = 'set-ntp true' ] && ${call}\n`, { mode: 0o755 })
  const far = async () => (await examine()).all.filter(({ name, of }) => name === 'repositories' && of === 'far')
  const [wrong, ...more] = await far()
  t.match(wrong, { health: 'bad', found: /clock is 1[12]\d\d s ahead of/ })
  t.match(more, [{ health: 'bad' }])
  await follow(wrong!)
  t.equal((await far()).length, 1)
  ahead = -120_000
  t.match(await far(), [{ health: 'warning', found: /s behind that of/ }, {}])
})
