// stillpoint repo and stillpoint point, on a folder and on a store that speaks S3: what people read, what programs read, and exit codes.

import { readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import t, { type Test } from 'tap'
import { openTarget, type TargetSettings } from '../../src/push/target.ts'
import { addPassphrase } from '../../src/repository/key-slots.ts'
import { initRepository, readRepositoryFile } from '../../src/repository/repository-file.ts'
import { Repository } from '../../src/repository/repository.ts'
import { CliWorker } from '../helpers/cli-worker.ts'
import { CHEAP, pushDisks, restored, sourceOf } from '../helpers/push-point.ts'
import { scratchFolder } from '../helpers/qemu.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'
import { settingsFor, silent } from '../helpers/s3.ts'
import { refusal, ScriptedS3, type Answer } from '../helpers/scripted-s3.ts'
import { MAIN } from '../helpers/stillpoint.ts'
import { attempt } from '../helpers/tools.ts'

const worker = new CliWorker()
t.teardown(() => worker[Symbol.asyncDispose]())

async function world(t: Test) {
  const stack = new AsyncDisposableStack()
  t.teardown(() => stack.disposeAsync())
  const folder = await scratchFolder(stack)
  writeFileSync(`${folder}/key`, 'correct horse\n')
  writeFileSync(`${folder}/wrong`, 'x')
  const store = stack.use(await ScriptedS3.listen({ create: 'ignored', swap: 'ignored' }))
  const config = `${folder}/stillpoint.yaml`
  const s3 = settingsFor(store.endpoint, 'bucket', { prefix: 'site-a/' })
  const repositories = {
    local: { plugin: 'file', path: 'backup' },
    sealed: { plugin: 'file', path: 'sealed', encryption: { key: `file:${folder}/key` } },
    'wrong-key': { plugin: 'file', path: 'sealed', encryption: { key: `file:${folder}/wrong` } },
    offsite: { plugin: 's3', ...s3 },
    hasty: { plugin: 's3', ...s3, retry: '200ms' },
    safe: { plugin: 's3', ...s3, prefix: 'safe/', encryption: { key: `file:${folder}/key` } },
    odd: { plugin: 's3', ...s3, bukcet: 1 },
    ownerless: { plugin: 'file', path: 'not/there' },
    'no-folder': { plugin: 'file', path: 'key' },
    nobody: { plugin: 's3', ...s3, endpoint: 'http://127.0.0.1:9', retry: '10ms' },
  }
  writeFileSync(config, JSON.stringify({ repositories })) // JSON is YAML
  const call = async (args: string, ...more: string[]) => {
    const { code, stdout, stderr } = await worker.run(...args.split(' '), ...more, '--config', config)
    return { code, out: stdout, err: stderr }
  }
  return {
    folder,
    store,
    call,
    local: () => open({ plugin: 'file', path: `${folder}/backup` }),
    offsite: () => open({ plugin: 's3', ...s3 }),
  }
}

/** An encrypted one whose key is made quickly. */
async function cheap(settings: TargetSettings) {
  await using target = await openTarget(settings, { log: silent })
  await initRepository(target, { passphrase: 'correct horse', cost: CHEAP, chunkSize: 65536 })
}

/** The slot of another key for one of these. */
async function alsoBy(passphrase: string, settings: TargetSettings) {
  await using target = await openTarget(settings, { log: silent })
  const repository = { target, file: await readRepositoryFile(target), passphrase: 'correct horse' }
  return await addPassphrase(repository, passphrase, { cost: CHEAP, label: 'in the safe' })
}

const open = async (target: TargetSettings) => Repository.open(await openTarget(target, { log: silent }))

t.test('a repository is made, filled, looked at, checked, pruned and collected', async t => {
  const { call, local, folder } = await world(t)
  t.match(await call('repo stats local'), { code: 10, err: /there is no repository; make one with "stillpoint repo init"/ })
  t.match(await call('repo init local --chunk-size 64K'), { code: 0, out: /backup: the repository is made, and not encrypted/ })
  t.match(await call('point list local'), { code: 0, out: '', err: 'No restore points.\n' })

  const repository = await local()
  const bytes = diskContent(40 * 65536, 1)
  const { key: older } = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes) }])
  bytes.set(randomBytes(200_000, 2), 300_000)
  const { key: newer } = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes) }])
  const [first, second] = [older, newer].map(key => key.replace('points/', '')) as [string, string]

  const list = await call('point list local')
  t.match(list.out, /^POINT +TIME +DISKS +SIZE +CHANGED +STORED +STATE\n/)
  t.same(
    list.out
      .split('\n')
      .slice(1, -1)
      .map(line => line.split(' ')[0]),
    [first, second],
  )
  const listed = (await call('point list local --machine vm --json')).out
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))
  t.match(listed, [
    { point: first, machine: 'vm', parent: null },
    { point: second, parent: older },
  ])
  t.match(await call(`point show local ${second}`), { code: 0, out: new RegExp(`after +${first}\n[^]*root +2.5 MiB`) })
  t.match(await call('point show local vm/none'), { code: 1, err: /there is no restore point/ })

  t.match(await call('repo stats local'), {
    out: /encrypted +no\nwriters +any host\nholds .* packs?, \d+ chunks\nstands for +5 MiB of disks.*\nat work +nobody\n\nMACHINE +POINTS +SIZE +STORED[^]*vm +2 +2.5 MiB/,
  })
  t.match(JSON.parse((await call('repo stats local --json')).out), {
    cas: true,
    encrypted: false,
    machines: [{ machine: 'vm', points: 2 }],
  })
  t.match(await call('repo check local --level scrub'), { code: 0, out: /^scrub: .*all is well\n$/ })
  t.match(await call(`point verify local ${first}`), { code: 0, out: /^deep: .*all is well\n$/ })

  t.match(await call(`point diff local ${first} vm/latest`), { code: 0, out: /^DISK +SIZE[^]*\nroot +2.5 MiB +256 KiB +1\n$/ })
  t.match(await call(`point diff local ${first} ${second} root --ranges`), { out: /\nroot 262144 262144\n$/ })
  t.match(JSON.parse((await call(`point diff local ${second} ${second} --json`)).out), { disk: 'root', changed: 0 })
  t.match(await call(`point diff local ${first} ${second} swap`), { code: 1, err: /has no disk 'swap'; it has 'root'/ })
  const moved = await pushDisks(await local(), [{ name: 'swap', source: sourceOf(bytes) }], { machine: 'moved' })
  const renamed = await pushDisks(await local(), [{ name: 'scratch', source: sourceOf(bytes) }], { machine: 'moved' })
  const points = [moved, renamed].map(({ key }) => key.slice('points/'.length)).join(' ')
  const both = /scratch is new\nswap is gone: only the older one has it\n$/
  t.match(await call(`point diff local ${points}`), { code: 0, out: both })
  t.match(JSON.parse((await call(`point diff local ${points} swap --json`)).out), { disk: 'swap', only: 'older', changed: 0 })
  t.match(await call(`point pin local ${first} --reason upgrade`), { code: 0, out: '' })
  t.match(await call('point list local'), { out: new RegExp(`${first} .* crash, pinned\n${second} .* crash\n`) })
  t.match(await call(`point forget local ${first}`), { code: 11, err: /is pinned/ })
  t.match(await call('repo prune local vm --keep-last 1 --dry-run'), { out: new RegExp(`${first} +kept +pinned`) })
  t.match(await call(`point unpin local ${first}`), { code: 0 })
  t.match(await call(`point forget local ${second}`), { code: 11, err: /newest complete restore point of 'vm'; say --force/ })

  t.match(await call('repo prune local vm'), { code: 1, err: /./ }, 'no rule at all is no policy')
  const plan = await call('repo prune local vm --keep-last 1 --dry-run')
  t.match(plan.out, new RegExp(`${second} +kept +[^]*${first} +would be forgotten`))
  t.match(await call('repo prune local vm --keep-last x'), { code: 2, err: /--keep-last must be a whole number/ })
  t.match(await call('repo prune local vm --keep-last 1'), { out: new RegExp(`${first} +forgotten`) })
  t.match(await call('repo gc local'), { code: 0, out: /Not needed any more: \d+ packs?/ })
  t.match(await call('repo gc local --grace 0s --json'), { out: /"state":"deleted"/ })
  t.ok((await restored(repository, newer, 'root')).equals(bytes))

  const pack = readdirSync(`${folder}/backup/packs`, { recursive: true, withFileTypes: true }).find(entry => entry.isFile())!
  const path = `${pack.parentPath}/${pack.name}`
  truncateSync(path, readFileSync(path).length >> 2)
  t.match(await call(`point verify local ${second}`), { code: 21, out: new RegExp(`damaged: ${second} root: `) })
  const checked = await call('repo check local --json')
  t.equal(checked.code, 21)
  t.match(JSON.parse(checked.out), { 'damaged-packs': [{ key: /^packs/ }] })
})

t.test('on a store that keeps no conditions one host writes, and all else is as anywhere', async t => {
  const { call, offsite, store } = await world(t)
  t.match(await call('repo init offsite --chunk-size 64K'), {
    code: 0,
    out: /bucket\/site-a\/: the repository is made, and not encrypted/,
    err: /cannot compare and swap, so one host may write to it/,
  })
  t.match(await call('repo stats offsite'), { out: /writers +one host, none yet/ })
  const bytes = diskContent(20 * 65536, 3)
  const { key } = await pushDisks(await offsite(), [{ name: 'root', source: sourceOf(bytes) }])
  t.match(await call('repo check offsite --level deep'), { code: 0, out: /all is well/ })
  t.match(await call(`point show offsite ${key}`), { code: 0 }, 'with the whole key too')
  // Another host has it.
  const body = Buffer.from(JSON.stringify({ version: 1, id: 'another', host: 'old.example', since: '2026-01-01T00:00:00Z' }))
  store.objects.set('site-a/owner', { body, tag: 'x', headers: {} })
  t.match(await call('repo gc offsite'), { code: 11, err: /old.example since .*"stillpoint repo take-over"/ })
  t.match(await call('repo take-over offsite'), { code: 0, out: /writes to it from now on/ })
  t.match(await call('repo gc offsite'), { code: 0, out: 'Nothing to delete.\n' })
})

t.test('what is wrong with the call or the configuration is said, with an exit code of its own', async t => {
  const { call, folder } = await world(t)
  t.match(await call('repo stats ofsite'), { code: 1, err: /has no repository 'ofsite'; did you mean 'offsite'\?/ })
  t.match(await call('repo stats odd'), {
    code: 2,
    err: /stillpoint\.yaml:1:\d+: unknown key "bukcet" in "repositories\.odd"; did you mean "bucket"\?\n$/,
  })
  t.match(await call('repo init local --chunk-size 3'), { code: 2, err: /power of two/ })
  t.match(await call('repo init local --chunk-size big'), { code: 2, err: /--chunk-size must be a power of two/ })
  t.match(await call('repo init sealed'), { code: 0, out: /and encrypted: keep a copy of its key elsewhere/ })
  t.match(await call('repo init sealed'), { code: 1, err: /there is a repository already/ })
  t.match(await call('repo stats wrong-key'), { code: 12, err: /the key does not open this repository/ })
  t.match(await worker.run('repo', 'stats', 'x', '--config', `${folder}/none.yaml`), {
    code: 2,
    stderr: /cannot read the configuration/,
  })
})

t.test('restore points are copied from a folder to S3 with another key, exported from there, and imported again', async t => {
  const { call, folder, local, store } = await world(t)
  t.equal((await call('repo init local --chunk-size 64K')).code, 0)
  await cheap({ plugin: 's3', ...settingsFor(store.endpoint, 'bucket', { prefix: 'safe/' }) })
  await cheap({ plugin: 'file', path: `${folder}/sealed` })
  const bytes = diskContent(30 * 65536, 1)
  const { key } = await pushDisks(await local(), [{ name: 'root', source: sourceOf(bytes) }])
  const point = key.replace('points/', '')
  t.match(await call('point copy local vm/latest safe'), {
    code: 0,
    out: /copied to safe; 1\.\d+ MiB read, 1\.\d+ MiB new there/,
  })
  t.match(await call('point copy local vm/latest safe'), { code: 0, out: `${point}: safe has it already\n` })
  bytes.set(randomBytes(1000, 2), 5000)
  const newer = (await pushDisks(await local(), [{ name: 'root', source: sourceOf(bytes) }])).key.replace('points/', '')
  const told = await call('point copy local vm/latest safe --json')
  t.match(JSON.parse(told.out), { point: newer, repository: 'safe', new: true, since: point, added: 65536 })
  t.match(await call('point copy local vm/latest local'), { code: 1, err: /same repository/ })
  t.match(await call('point verify safe vm/latest'), { code: 0 })

  const zip = `${folder}/vm.zip`
  t.match(await call(`repo export safe vm/latest ${zip}`), {
    code: 0,
    out: /vm\.zip: 1 restore point, 1\.88 MiB of disks in/,
    err: /is not encrypted, as the repository is/,
  })
  t.match(await call(`repo export safe vm/latest ${zip}`), { code: 11, err: /is there already/ })
  t.match(await call(`repo export safe ${zip}`), { code: 2, err: /say which restore points/ })
  const both = await call(`repo export safe ${point} vm/latest ${zip} --force --json`)
  t.match(JSON.parse(both.out), { file: zip, points: [point, newer], size: 2 * bytes.length })
  t.match(await call(`restore ${zip} latest ${folder}/root.raw`), { code: 0, out: /root\.raw: root, 1\.88 MiB restored/ })
  t.ok(readFileSync(`${folder}/root.raw`).equals(bytes))
  t.match(await call(`restore ${zip} vm/2 ${folder}/other.raw`), { code: 1, err: /several restore points begin/ })
  t.match(await call(`restore ${zip} web/latest ${folder}/other.raw`), { code: 1, err: new RegExp(`it has ${point}, ${newer}`) })
  t.match(await call(`repo import ${zip} sealed --json`), { code: 0 })
  t.match(await call(`repo import ${zip} sealed`), { code: 0, out: `${point}: is there already\n${newer}: is there already\n` })
  t.match(await call(`restore sealed ${newer} ${folder}/again.raw`), { code: 0 })
  t.ok(readFileSync(`${folder}/again.raw`).equals(bytes))
  const against = `--against ${folder}/again.raw`
  t.match(await call(`point verify sealed ${newer} ${against}`), { code: 0, out: /again\.raw is as disk root was at vm\/2/ })
  t.match(await call(`point verify sealed ${point} ${against} --disk root`), {
    code: 1,
    out: /^root 0 65536\n.*differs from disk root at vm\/.* in 1 place, 64 KiB of chunks\n$/,
  })
  t.match(await call(`point verify sealed ${point} --disk root`), { code: 2, err: /go with --against/ })
  t.match(await call(`point verify sealed ${point} ${against} --disk data`), {
    code: 1,
    err: /has no disk 'data'; it has 'root'/,
  })
  t.match(await call('repo gc sealed --repack 1G'), { code: 0, out: 'Nothing to repack.\nNothing to delete.\n' })
  t.match(await call('repo gc sealed --repack much'), { code: 2, err: /--repack must be a size/ })
  t.match(await call('repo check sealed --level scrub --budget 1'), { code: 0, err: /the next run goes on from there/ })
  t.match(await call('repo check sealed --budget 1G'), { code: 2, err: /quick reads nothing/ })
  truncateSync(zip, 1000)
  t.match(await call(`repo import ${zip} sealed`), { code: 21, err: /vm\.zip' is damaged, or no archive of Stillpoint/ })
})

t.test('keys are listed, added, changed and removed, in a folder and on S3', async t => {
  const { call, folder, store } = await world(t)
  const s3 = { plugin: 's3', ...settingsFor(store.endpoint, 'bucket', { prefix: 'safe/' }) }
  for (const [name, settings] of [
    ['safe', s3],
    ['sealed', { plugin: 'file', path: `${folder}/sealed` }],
  ] as const) {
    await cheap(settings)
    t.match(await call(`repo key list ${name}`), { code: 0, out: /^SLOT .*\n[\da-f-]{36} .* yes +-\n$/ })
    const slot = (await alsoBy('x', settings)).replace('keys/', '')
    const slots = (await call(`repo key list ${name} --json`)).out.trim().split('\n')
    t.match(
      slots.map(line => JSON.parse(line) as object),
      [{ opens: true }, { slot, label: 'in the safe', opens: false }],
    )
    t.match(await call(`repo key remove ${name} ${slot.slice(0, 8)}`), { code: 0, out: new RegExp(`${slot} removed`) })
    t.match(await call(`repo key remove ${name} ${slot.slice(0, 8)}`), { code: 1, err: /no key slot begins with/ })
  }
  t.equal((await call('repo stats wrong-key')).code, 12)
  t.match(await call(`repo key change sealed --new-key file:${folder}/wrong`), {
    code: 0,
    out: /added\n.*removed\nPut the new key/,
  })
  t.same([(await call('repo stats sealed')).code, (await call('repo stats wrong-key')).code], [12, 0])
  for (const [args, err] of [
    ['repo key show sealed', /'show' is none of list, add, remove, change/],
    ['repo key add sealed', /say --new-key/],
    ['repo key list sealed x', /one word too many/],
    ['repo key remove sealed', /say which slot/],
    ['repo key add sealed --new-key secret', /must say where the secret is/],
  ] as const)
    t.match(await call(args), { code: 2, err }, args)
  t.equal((await call('repo init local')).code, 0)
  t.match(await call('repo key list local'), { code: 1, err: /is not encrypted, so it has no keys/ })
  const { code, stderr } = await attempt(
    process.execPath,
    [MAIN, 'repo', 'key', 'add', 'wrong-key', '--new-key', '-', '--config', `${folder}/stillpoint.yaml`],
    { input: 'correct horse\n' },
  )
  t.equal(code, 0, stderr)
  t.equal((await call('repo stats sealed')).code, 0, 'a key from standard input')
})

t.test(
  'what is wrong with a store or a repository is said with what to do next, and a restore needs no more than to read',
  async t => {
    const { call, folder, store, offsite } = await world(t)
    t.equal((await call('repo init offsite --chunk-size 64K')).code, 0)
    const bytes = diskContent(20 * 65536, 3)
    await pushDisks(await offsite(), [{ name: 'root', source: sourceOf(bytes) }])
    const skewed = { date: new Date(Date.now() - 86_400_000).toUTCString() }
    const cases: readonly (readonly [what: string, answer: Answer, code: number, err: RegExp])[] = [
      ['a key that nobody knows', refusal(403, 'InvalidAccessKeyId'), 1, /no access key 'ACCESSKEYOFTESTS'.*look at access-key/],
      ['the secret of another key', refusal(403, 'SignatureDoesNotMatch'), 1, /look at secret-key/],
      ['a token of yesterday', refusal(400, 'ExpiredToken'), 1, /put a new one in its place/],
      ['another region', refusal(400, 'AuthorizationHeaderMalformed', '<Region>eu-north-1</Region>'), 2, /region.*eu-north-1/],
      ['no bucket', refusal(404, 'NoSuchBucket'), 10, /no bucket 'bucket'; create it/],
      ['a clock that the store never takes', refusal(403, 'RequestTimeTooSkewed', '', skewed), 1, /clock/],
      [
        'a web server',
        { status: 200, headers: { 'content-type': 'text/html' }, body: '<html></html>' },
        2,
        /no S3 store.*look at endpoint/,
      ],
    ]
    for (const [what, answer, code, err] of cases) {
      store.script = () => answer
      t.match(await call('point list offsite'), { code, err, out: '' }, what)
    }
    store.script = () => undefined
    const file = store.objects.get('site-a/repository.json')!
    for (const [change, err] of [
      [{ format: 9 }, /has format 9, and this version reads 1: use a newer one/],
      [{ requires: ['telepathy'] }, /needs a version that knows telepathy/],
    ] as const) {
      const body = Buffer.from(JSON.stringify({ ...JSON.parse(String(file.body)), ...change }))
      store.objects.set('site-a/repository.json', { ...file, body })
      t.match(await call('point list offsite'), { code: 1, err })
      t.match(await call('repo gc offsite'), { code: 1, err }, 'and nothing is deleted')
    }
    store.objects.set('site-a/repository.json', file)
    t.match(await call('repo stats ownerless'), { code: 10, err: /cannot be made.*is what holds it mounted/ })
    t.match(await call('repo stats no-folder'), { code: 1, err: /is not a folder/ })
    t.match(await call('repo stats nobody'), { code: 1, err: /nobody listens there.*is the endpoint right, the store up/ })

    // Whoever may only read, or finds the disk full or read-only, has back what is there.
    const before = store.objects.size
    store.script = ({ method }) => (method === 'GET' || method === 'HEAD' ? undefined : refusal(403, 'AccessDenied'))
    t.match(await call(`restore offsite vm/latest root ${folder}/root.raw`), {
      code: 0,
      out: /1\.25 MiB restored/,
      err: /nobody is to collect/,
    })
    t.ok(readFileSync(`${folder}/root.raw`).equals(bytes))
    t.match(await call('repo gc offsite'), { code: 1, err: /may not write.*docs\/s3\.md has the policy/ })
    store.script = ({ method }) => (method === 'GET' || method === 'HEAD' ? undefined : refusal(503, 'SlowDown'))
    t.match(
      await call(`restore hasty vm/latest root ${folder}/busy.raw`),
      { code: 0, err: /nobody is to collect.*503 SlowDown/ },
      'a store that can be read is read',
    )
    t.ok(readFileSync(`${folder}/busy.raw`).equals(bytes))
    t.equal(store.objects.size, before, 'nothing was written')

    store.script = () => undefined
    t.match(await call('point show offsite vm/latest'), { code: 0, err: '' })
    await pushDisks(await offsite(), [{ name: 'root', source: sourceOf(bytes) }], { time: new Date(Date.now() + 86_400_000) })
    t.match(await call('point show offsite vm/latest'), {
      code: 0,
      err: /by its time, which is yet to come: if a clock was wrong/,
    })
  },
)
