// Guests are frozen for an instant, and thawed whatever comes of it; and what their machine wants done before and after.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { chmod, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { startAppliance, type TestAppliance } from '../helpers/appliance.ts'
import { scratchFolder } from '../helpers/control.ts'
import { fakeAgent } from '../helpers/guest-agent.ts'
import { diskContent } from '../helpers/random-bytes.ts'
import { WHOLE } from '../helpers/stillpoint.ts'

const GRANULE = 65536
const SIZE = 16 * GRANULE
const disks = { root: diskContent(SIZE, 3), data: diskContent(SIZE, 4) }

interface CheckpointReply {
  name: string
  consistency: string
}

interface MachineReply {
  frozen?: { reason: string }
}

/** Each line of a log that scripts write; none when it is not there. */
const linesOf = (file: string) => (existsSync(file) ? readFileSync(file, 'utf8').trim().split('\n').filter(Boolean) : [])

async function until(what: string, done: () => boolean | Promise<boolean>) {
  for (let waited = 0; !(await done()); waited += 20) {
    if (waited > 30_000) throw new Error(`it never happened that ${what}`)
    await sleep(20)
  }
}

/** A program in the folder that logs how it is called, and then does what `script` says. */
async function program(folder: string, name: string, script = '') {
  const file = `${folder}/${name}`
  const log = `echo "$STILLPOINT_HOOK $STILLPOINT_MACHINE $STILLPOINT_OPERATION \${STILLPOINT_NAME:--} \${STILLPOINT_RESULT:--}" >> ${folder}/log`
  await writeFile(file, `#!/bin/sh\n${log}\n${script}\n`)
  await chmod(file, 0o755)
  return file
}

const dirtyIn = async (it: TestAppliance, checkpoint: string) => {
  const [found] = await it.execute<[{ changed: number }]>('query-checkpoints', { machine: 'db', name: checkpoint, size: true })
  return found.changed
}

const frozenOf = async (it: TestAppliance) => (await it.execute<[MachineReply]>('query-machines'))[0].frozen

t.test(
  'by the guest agent, what is written while it freezes is before the instant, and what is written when it thaws is after',
  async t => {
    await using stack = new AsyncDisposableStack()
    const home = await scratchFolder(stack)
    const guest: { write?: (granule: number) => Promise<void> } = {}
    const agent = stack.use(
      await fakeAgent(`${home}/agent`, {
        freeze: () => guest.write!(1), // as a file system that writes what it has not written yet
        thaw: () => guest.write!(2),
        stale: '{"return": {}}\nhalf an ans',
      }),
    )
    const it = await startAppliance(stack, { disks, machine: `, quiesce: { agent: ${home}/agent }` })
    const client = await it.nbd('db/root')
    guest.write = granule => client.write(granule * GRANULE, Buffer.alloc(GRANULE, granule))

    const made = await it.execute<CheckpointReply>('checkpoint-create', { machine: 'db', name: 'one' })
    t.equal(made.consistency, 'quiesced')
    t.same(agent.asked, ['guest-fsfreeze-freeze', 'guest-fsfreeze-thaw', 'guest-fsfreeze-status'])
    t.equal(await dirtyIn(it, 'one'), GRANULE, 'the one that was written as it thawed')

    const pulled = await it.execute<CheckpointReply>('backup-begin', { machine: 'db', mode: 'pull', name: 's', since: 'one' })
    t.equal(pulled.consistency, 'quiesced')
    const view = await it.nbd('s/root')
    t.same(await view.read(GRANULE, GRANULE), Buffer.alloc(GRANULE, 1))
    await it.execute('backup-finish', { name: 's' })
    t.equal(agent.asked.length, 6)

    const without = await it.execute<CheckpointReply>('checkpoint-create', { machine: 'db', name: 'two', quiesce: false })
    t.equal(without.consistency, 'crash')
    await it.execute('disk-snapshot', { machine: 'db', disks: [{ disk: 'root', file: `${home}/o.qcow2` }], quiesce: true })
    t.equal(agent.asked.length, 9)
    t.notOk(agent.frozen)
    t.notOk(existsSync(`${it.folder}/state/frozen-db.json`))
  },
)

t.test(
  'a guest that cannot be frozen is thawed all the same; the instant is not taken, or as the configuration says',
  async t => {
    await using stack = new AsyncDisposableStack()
    const home = await scratchFolder(stack)
    const agent = stack.use(
      await fakeAgent(`${home}/agent`, {
        freeze: () => {
          throw new Error('failed to freeze /mnt: halfway')
        },
      }),
    )
    const it = await startAppliance(stack, { disks, machine: `, quiesce: { agent: ${home}/agent, on-failure: continue }` })
    const create = (args: object) => it.execute<CheckpointReply>('checkpoint-create', { machine: 'db', ...args })
    await t.rejects(create({ name: 'one', quiesce: true }), {
      message:
        /could not be frozen: the guest agent says to guest-fsfreeze-freeze: failed to freeze \/mnt: halfway; .*--no-quiesce/,
    })
    t.same(agent.asked, ['guest-fsfreeze-freeze', 'guest-fsfreeze-thaw', 'guest-fsfreeze-status'])
    t.same(await it.execute('query-checkpoints', { machine: 'db' }), [], 'nothing of it')
    const made = await create({ name: 'one' })
    t.equal(made.consistency, 'crash')
    t.ok(it.events.some(({ event }) => event === 'MACHINE_NOT_QUIESCED'))
    await agent[Symbol.asyncDispose]()
    await t.rejects(create({ name: 'two', quiesce: true }), { message: /the guest agent at .* cannot be reached/ })
    await until('what is not known to be thawed is told of', async () => (await frozenOf(it)) !== undefined)
  },
)

t.test('a guest that does not thaw is known to be frozen, and thawed later; meanwhile it is not frozen again', async t => {
  await using stack = new AsyncDisposableStack()
  const home = await scratchFolder(stack)
  let stubborn = true
  const agent = stack.use(
    await fakeAgent(`${home}/agent`, {
      thaw: () => {
        if (stubborn) throw new Error('not yet')
      },
    }),
  )
  const it = await startAppliance(stack, { disks, machine: `, quiesce: { agent: ${home}/agent }` })
  const made = await it.execute<CheckpointReply>('checkpoint-create', { machine: 'db', name: 'one' })
  t.equal(made.consistency, 'quiesced', 'the instant is good')
  t.match(await frozenOf(it), { reason: /not yet/ })
  await t.rejects(it.execute('checkpoint-create', { machine: 'db', name: 'two' }), { message: /has been frozen since .*not yet/ })
  t.equal(agent.asked.filter(name => name === 'guest-fsfreeze-freeze').length, 1)
  await t.rejects(it.execute('machine-thaw', { machine: 'db' }), { message: /not yet/ })
  const plain = await it.execute<CheckpointReply>('checkpoint-create', { machine: 'db', name: 'three', quiesce: false })
  t.equal(plain.consistency, 'crash')
  stubborn = false
  await until('the guest is thawed', async () => (await frozenOf(it)) === undefined)
  t.ok(it.events.some(({ event }) => event === 'MACHINE_NOT_THAWED'))
  await until('the event is there', () => it.events.some(({ event }) => event === 'MACHINE_THAWED'))
  t.notOk(agent.frozen)
  await it.execute('machine-thaw', { machine: 'db' })
})

t.test('commands freeze and thaw: what fails, takes too long or is not there is told, ended and thawed', async t => {
  const scripts: readonly (readonly [script: string, message: RegExp])[] = [
    ['echo no such database >&2; exit 7', /the freeze command of machine 'db' failed with 7: no such database/],
    ['echo waiting; sleep 1000 & wait', /did not end within 0.5 s, and was ended: waiting/],
    ['kill -TERM $$', /was ended by SIGTERM/],
  ]
  for (const [script, message] of scripts) {
    await using stack = new AsyncDisposableStack()
    const home = await scratchFolder(stack)
    const freeze = await program(home, 'freeze', script)
    const thaw = await program(home, 'thaw')
    const it = await startAppliance(stack, {
      disks,
      machine: `, quiesce: { freeze: [${freeze}], thaw: ${thaw}, timeout: 500ms }`,
    })
    await t.rejects(it.execute('backup-begin', { machine: 'db', mode: 'pull', name: 's' }), { message })
    t.same(linesOf(`${home}/log`), ['freeze db pull s -', 'thaw db pull s -'])
    t.same(await it.execute('query-backups'), [])
    t.equal(await frozenOf(it), undefined)
  }
  await using stack = new AsyncDisposableStack()
  const it = await startAppliance(stack, { disks, machine: `, quiesce: { freeze: [/not/there], thaw: exit 0 }` })
  await t.rejects(it.execute('checkpoint-create', { machine: 'db' }), { message: /cannot be run: \/not\/there: No such file/ })
})

t.test('before and after: one that fails beforehand stops it; the end is told, with what came of it', async t => {
  await using stack = new AsyncDisposableStack()
  const home = await scratchFolder(stack)
  const before = await program(home, 'before', `test ! -e ${home}/refuse`)
  const after = await program(home, 'after', `env | grep ^STILLPOINT_ | sort > ${home}/env; test ! -e ${home}/refuse`)
  const machine = `, hooks: { before: [${before}], after: [${after}] }`
  const it = await startAppliance(stack, { disks, machine, more: `repositories: { local: { plugin: file, path: ./none } }` })
  process.env['STILLPOINT_TEST_SECRET'] = 'hush'
  const log = () => linesOf(`${home}/log`)
  await it.execute('checkpoint-create', { machine: 'db', name: 'one' })
  t.same(log(), ['before db checkpoint one -', 'after db checkpoint one done'])
  t.same(linesOf(`${home}/env`), [
    'STILLPOINT_CHECKPOINT=one',
    'STILLPOINT_CONSISTENCY=crash',
    'STILLPOINT_DISKS=root data',
    'STILLPOINT_HOOK=after',
    'STILLPOINT_MACHINE=db',
    'STILLPOINT_NAME=one',
    'STILLPOINT_OPERATION=checkpoint',
    'STILLPOINT_RESULT=done',
  ])
  await it.execute('backup-begin', { machine: 'db', mode: 'pull', name: 's' })
  t.same(log().slice(2), ['before db pull s -'])
  await it.execute('backup-abort', { name: 's' })
  await until('the end of the session is told', () => log().length === 4)
  t.equal(log()[3], 'after db pull s failed')
  await it.execute('backup-begin', { machine: 'db', mode: 'push', name: 'p', repository: 'local' })
  await until('the end of the push is told', () => log().length === 6)
  t.same(log().slice(4), ['before db push p -', 'after db push p failed'])
  await writeFile(`${home}/refuse`, '')
  await t.rejects(it.execute('checkpoint-create', { machine: 'db', name: 'two' }), {
    message: /the command before, .* failed with 1/,
  })
  t.same(log().slice(6), ['before db checkpoint two -', 'after db checkpoint two failed'])
  t.match(await it.execute('query-checkpoints', { machine: 'db' }), [{ name: 'one' }])
  t.ok(it.events.some(({ event }) => event === 'MACHINE_HOOK_FAILED'))
  delete process.env['STILLPOINT_TEST_SECRET']
  await t.rejects(it.execute('checkpoint-create', { machine: 'db', quiesce: true }), { message: /does not say how the guest/ })
})

t.test('a daemon that is killed while the guest freezes, is frozen or thaws: the next one thaws it', async t => {
  await using stack = new AsyncDisposableStack()
  for (const killedIn of ['freeze', 'thaw']) {
    const folder = await scratchFolder(stack)
    const dies = `if [ ! -e ${folder}/killed ]; then touch ${folder}/killed; kill -9 $PPID; fi`
    const freeze = await program(folder, 'freeze', killedIn === 'freeze' ? dies : '')
    const thaw = await program(folder, 'thaw', killedIn === 'thaw' ? dies : '')
    await writeFile(`${folder}/root.raw`, disks.root)
    await writeFile(
      `${folder}/s.yaml`,
      `state: ./state
control: { socket: ./control.sock }
nbd: []
machines: { db: { disks: { root: { image: ./root.raw, format: raw } }, quiesce: { freeze: [${freeze}], thaw: [${thaw}] } } }
`,
    )
    const first = await startDaemon(folder)
    const asked = first.qmp.execute('checkpoint-create', { machine: 'db', name: 'one' })
    await t.rejects(asked, 'the connection ends')
    await first.exit
    const second = await startDaemon(folder)
    await until('it is thawed', () => linesOf(`${folder}/log`).at(-1) === 'thaw db start - -')
    const before =
      killedIn === 'freeze' ? ['freeze db checkpoint one -'] : ['freeze db checkpoint one -', 'thaw db checkpoint one -']
    t.same(linesOf(`${folder}/log`), [...before, 'thaw db start - -'])
    t.same(await second.qmp.execute('query-checkpoints', { machine: 'db' }), [], 'what was not told to be made is not')
    await second.qmp.execute('checkpoint-create', { machine: 'db', name: 'one' })
    t.match(await second.qmp.execute('query-checkpoints', { machine: 'db' }), [
      { name: 'one', consistency: 'quiesced', usable: true },
    ])
    await second.qmp.execute('quit')
    await second.exit
    await second.qmp[Symbol.asyncDispose]()
  }
})

async function startDaemon(folder: string) {
  const child = spawn(process.execPath, [WHOLE, 'daemon', '--config', `${folder}/s.yaml`], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  const exit = once(child, 'exit')
  let said = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text))
  await until('the daemon is ready', () => {
    if (child.exitCode !== null) throw new Error(`the daemon did not start: ${said}`)
    return / ready /.test(said)
  })
  return { qmp: await QmpClient.connect(`${folder}/control.sock`), exit }
}
