// What a person gets wrong in a call, and in a configuration that reads well: a sentence that names it, the remedy, and the exit code of the
// reference; and nothing is changed.

import { linkSync, mkdirSync, readdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { once } from 'node:events'
import t from 'tap'
import { Appliance } from '../../src/appliance.ts'
import { Fault } from '../../src/base/errors.ts'
import { createLog } from '../../src/base/log.ts'
import { native } from '../../src/base/native.ts'
import { loadSettings } from '../../src/settings/load.ts'
import { CliWorker } from '../helpers/cli-worker.ts'
import { scratchFolder } from '../helpers/control.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const SIZE = 1 << 20
const DISKS =
  'machines:\n  db: { disks: { root: { image: ./root.raw, format: raw }, data: { image: ./data.raw, format: raw } } }\n'

const one = (image: string) => `machines: { db: { disks: { root: { image: ${image}, format: raw } } } }\n`

async function world(stack: AsyncDisposableStack) {
  const folder = await scratchFolder(stack)
  const file = `${folder}/s.yaml`
  const write = (more: string, disks = DISKS) =>
    writeFileSync(file, `state: ./state\ncontrol: { socket: ./control.sock }\nnbd: [ { unix: ./nbd.sock } ]\n${disks}${more}`)
  for (const name of ['root', 'data']) {
    writeFileSync(`${folder}/${name}.raw`, randomBytes(70_000, 1))
    truncateSync(`${folder}/${name}.raw`, SIZE)
  }
  const start = async () => Appliance.start(await loadSettings(file), createLog('silent'))
  return { folder, file, write, start }
}

t.test('a call that cannot be done says why, what to do, and exits as the reference has it', async t => {
  await using stack = new AsyncDisposableStack()
  const { folder, file, write, start } = await world(stack)
  writeFileSync(`${folder}/empty.key`, '\n')
  write(`repositories:
  local: { plugin: file, path: ./backup }
  empty: { plugin: file, path: ./other, encryption: { key: "file:${folder}/empty.key" } }
  lost: { plugin: file, path: ./other, encryption: { key: "file:${folder}/none.key" } }
  unset: { plugin: file, path: ./other, encryption: { key: "env:STILLPOINT_NO_SUCH_KEY" } }
  other: { plugin: file, path: ./other }
  nowhere: { plugin: file, path: ./no/such/folder }
schedules:
  nightly: { machines: [db], repository: local }
`)
  process.env['STILLPOINT_SOCKET'] = `${folder}/control.sock`
  stack.defer(() => void delete process.env['STILLPOINT_SOCKET'])
  const before = readFileSync(`${folder}/root.raw`)
  const cli = stack.use(new CliWorker({ STILLPOINT_SOCKET: `${folder}/control.sock` }))
  const config = ['--config', file]
  t.equal((await cli.run('repo', 'init', 'local', ...config)).code, 0)
  stack.use(await start())
  writeFileSync(`${folder}/own.raw`, before)
  linkSync(`${folder}/own.raw`, `${folder}/own.link`)
  for (const args of [
    ['convert', '-f', 'raw', '-O', 'qcow2', `${folder}/own.raw`, `${folder}/base.qcow2`],
    ['create', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', `${folder}/top.qcow2`],
  ])
    t.equal((await cli.run('image', ...args)).code, 0)
  const base = readFileSync(`${folder}/base.qcow2`)
  t.equal((await cli.run('backup', 'start', 'db', '--push', 'local')).code, 0)
  const names = readdirSync(folder).toSorted()

  const mistakes: readonly (readonly [call: string, code: number, told: RegExp])[] = [
    ['backup start db/root --push local', 1, /'db\/root' is a disk|no machine 'db\/root'/],
    ['backup start bd --push local', 1, /no machine 'bd'; .*'db'/],
    ['backup start db --push loccal', 1, /there is no repository 'loccal'; the configuration has 'local', 'empty'/],
    ['backup start db --push local --speed fast', 2, /--speed must be a size/],
    ['backup start db --push empty', 2, /nothing was added to repository 'empty': .*there is nothing in file:.*empty\.key/],
    ['backup finish nothing', 1, /no backup session 'nothing'; 'stillpoint backup list' shows/],
    ['checkpoint create db bad/name', 1, /'bad\/name' cannot be the name of a checkpoint: it may have/],
    ['checkpoint delete db none', 1, /has no checkpoint 'none'; 'stillpoint checkpoint list db' shows/],
    ['disk copy db/rooot x.raw', 1, /no disk 'rooot'; it has 'root', 'data'/],
    ['disk copy db/root root.raw', 1, /already exists .*; to use it as it is say --reuse-external/],
    ['disk map db', 1, /No disk .* is called db; there are: db\/root, db\/data/],
    ['schedule run nigtly', 1, /there is no schedule 'nigtly'; the configuration has 'nightly'/],
    ['schedule next --at 2am', 2, /--at must be a time of systemd .*"2am" is no date/],
    ['qmp query-nothing', 1, /query-nothing has not been found/],
    ['qmp block-dirty-bitmap-add node=db.root', 2, /no JSON: .*; they look like '\{"node": "db\.root"\}'/],
    ['restore local db/latest rooot x.raw', 1, /has no disk 'rooot'; it has 'root', 'data'/],
    [
      'restore local db/latest root no/such/x.raw',
      1,
      /Could not create '.*no\/such\/x\.raw\.partial': No such file or directory; make the folder '.*no\/such' first/,
    ],
    ['restore local db/latest root root.raw', 11, /is there already; choose another name, --in-place .*, or --force/],
    ['restore local web/latest --to .', 1, /no restore point 'web\/latest': .* has no complete one of this machine/],
    ['restore local db/2020 root x.raw', 1, /no restore point 'db\/2020' in .*; "stillpoint point list" shows/],
    ['restore local db/latest x.raw', 1, /has the disks 'root', 'data': say which one, or --to FOLDER/],
    ['restore local db/latest --to s.yaml', 1, /s\.yaml\/root\.raw': Not a directory/],
    ['repo init local', 1, /there is a repository already/],
    ['repo init lost', 2, /repositories\.lost\.encryption\.key: .*none\.key: No such file or directory/],
    ['repo init unset', 2, /the environment has no STILLPOINT_NO_SUCH_KEY; set it for whoever runs this/],
    ['repo init nowhere', 10, /no\/such\/folder: cannot be made, .*is what holds it mounted, and the path right\?/],
    ['repo stats nowhere', 10, /no\/such\/folder: cannot be made/],
    ['backup start db --push other', 10, /nothing was added to repository 'other': .*there is no repository; make one with/],
    ['backup start db --push nowhere', 10, /nothing was added to repository 'nowhere': .*is what holds it mounted/],
    ['repo prune local db', 1, /keeps nothing; say what to keep/],
    ['repo prune local db --keep-daily -1', 2, /--keep-daily must be a whole number, not '-1'/],
    ['image create x.qcow2 10GB', 1, /10GB/],
    ['image create -f qcow3 x.qcow2 1G', 1, /qcow3/],
    ['image create y.qcow2', 1, /size/i],
    ['image info .', 1, /to be a regular file or a block device/],
    ['image info none.raw', 1, /none\.raw.*No such file/],
    ['image resize root.raw small', 1, /small/],
    ['nbd none.raw', 1, /none\.raw.*No such file/],
    ['status --socket s.yaml', 1, /s\.yaml/],
    ['image convert -f raw -O qcow2 own.raw own.raw', 1, /own\.raw' is the image that is to be converted; name another/],
    ['image convert -f raw -O qcow2 own.raw own.link', 1, /own\.link' is the image that is to be converted; name another/],
    ['image convert -f raw -O qcow2 -U own.raw own.raw', 1, /own\.raw' is the image that is to be converted; name another/],
    ['image convert -O raw top.qcow2 base.qcow2', 11, /base\.qcow2' is used by this process itself, under another node/],
    ['image convert -f raw -O raw root.raw x.raw', 11, /root\.raw' is used by .*\(-U\)/],
    ['image convert own.raw', 2, /missing required argument 'target'/],
    ['image resize own.raw -1G', 1, /New image size must be positive/],
    ['image create -f qcow2 x.qcow2 99999P', 1, /Invalid image size '99999P'/],
    ['backup start db/root', 2, /--push REPOSITORY stores it there, --pull opens a session/],
    ['backup start db --pull --since nosuch', 1, /has no checkpoint 'nosuch'; 'stillpoint checkpoint list db' shows/],
    ['backup start db --pull --expire tomorrow', 2, /must be a time of at least a second with its unit, such as 90s/],
    ['backup start db --push local --quiesce', 1, /give the machine a 'quiesce' there, or do without --quiesce/],
    [
      'restore db/latest root x.raw',
      1,
      /has no repository 'db\/latest'; there are .*; a restore point comes behind its repository/,
    ],
    ['restore local db/latest root /dev/null', 1, /'\/dev\/null' is neither a file nor a block device; name a file in it/],
    ['repo stats lokal', 1, /has no repository 'lokal'; did you mean 'local'\?/],
    ['repo gc local --grace yesterday', 2, /--grace must be a time such as 24h, not 'yesterday'/],
    ['repo check local --level depe', 2, /'depe' is invalid\. Allowed choices are quick, scrub, deep/],
    ['disk pivot db/root', 1, /disk 'db\/root' does not have an active block job/],
    ['disk commit db/root', 1, /say --active, or name another with --top/],
    ['disk copy db/root none.raw --reuse-external', 1, /missing destination file for disk 'db\/root': .*none\.raw/],
    ['disk copy db/root root.raw --reuse-external', 11, /root\.raw/],
    ['nbd --port 99999 own.raw', 2, /'99999' is invalid\. It must be a whole number from 0 to 65535/],
    ['completion fish', 2, /for bash and zsh, and none for fish/],
    ['status extra', 2, /too many arguments for 'status'/],
    ['stats', 2, /unknown command 'stats'; did you mean status\?/],
    ['config show --effektive', 2, /unknown option '--effektive'; did you mean --effective\?/],
  ]
  const inFolder = new Set(
    'own.raw own.link top.qcow2 base.qcow2 s.yaml root.raw x.raw no/such/x.raw x.qcow2 y.qcow2 none.raw .'.split(' '),
  )
  for (const [call, code, told] of mistakes) {
    const words = call.split(' ').map(word => (inFolder.has(word) ? `${folder}/${word}` : word))
    const reads = ['restore', 'repo'].includes(words[0]!) ? config : []
    const ended = await cli.run(...words, ...reads)
    t.equal(ended.code, code, `${call}: ${ended.stderr}`)
    t.match(ended.stderr, told, call)
    t.match(ended.stderr, /^stillpoint: (?!.*\bat \S+:\d+:\d+)/, `${call}: no stack`)
  }
  for (const name of ['root', 'own']) t.ok(readFileSync(`${folder}/${name}.raw`).equals(before), `${name}.raw is what it was`)
  t.ok(readFileSync(`${folder}/base.qcow2`).equals(base), 'and so is what is behind another image')
  t.same(readdirSync(folder).toSorted(), names, 'nothing is made on the way')
})

t.test('a daemon that cannot start says what is in its way, and leaves nothing behind', async t => {
  await using stack = new AsyncDisposableStack()
  const { folder, write, start } = await world(stack)
  mkdirSync(`${folder}/folder`)
  symlinkSync('root.raw', `${folder}/link.raw`)
  const taken = createServer().listen(0, '127.0.0.1')
  stack.defer(() => void taken.close())
  await once(taken, 'listening')
  const { port } = taken.address() as { port: number }
  const twice = `machines: { db: { disks: { a: { image: ./root.raw, format: raw }, b: { image: ./link.raw, format: raw } } } }\n`
  const mistakes: readonly (readonly [kind: string, disks: string, more: string, told: RegExp])[] = [
    ['no image', one('./none.raw'), '', /none\.raw.*No such file/],
    ['a folder', one('./folder'), '', /folder/],
    ['the same image by another name', twice, '', /root\.raw|link\.raw/],
    ['qcow2 that is none', one('./root.raw').replace('format: raw', 'format: qcow2'), '', /not.* qcow2|qcow2 format/i],
    ['a port that is taken', '', `metrics: { listen: "127.0.0.1:${port}" }\n`, new RegExp(`${port}.*in use`)],
    ['no folder for a socket', '', 'metrics: { unix: ./none/m.sock }\n', /none\/m\.sock.*No such file/],
  ]
  for (const [kind, disks, more, told] of mistakes) {
    if (kind.startsWith('the same image') && !native) continue // nothing is locked then
    write(more, disks)
    await t.rejects(start(), { message: told }, kind)
    await start().catch((error: unknown) => t.ok(error instanceof Fault, `${kind}: ${String(error)}`))
  }
  write('')
  await (await start())[Symbol.asyncDispose]()
})
