// The command line's frame: help, version, mistakes in the call, no daemon, and what goes wrong on the way out.

import { spawn } from 'node:child_process'
import { chmodSync, readFileSync, renameSync } from 'node:fs'
import { createServer } from 'node:net'
import { dirname, join } from 'node:path'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Command } from 'commander'
import t from 'tap'
import { commands } from '../../src/cli/commands/index.ts'
import { loaders, oneCommand } from '../../src/cli/commands/one-command.ts'
import type { Noun, Verb } from '../../src/cli/define.ts'
import { NoSpace } from '../../src/base/errors.ts'
import { tellFailure } from '../../src/cli/failure.ts'
import { createProgram } from '../../src/cli/program.ts'
import { NEVER, Refusal, scriptedDaemon } from '../helpers/scripted-daemon.ts'
import { environment, LAUNCHER, MAIN, stillpoint, stillpointInThread, WHOLE } from '../helpers/stillpoint.ts'
import { Terminal } from '../helpers/terminal.ts'
import { attempt, missing } from '../helpers/tools.ts'

const runDaemon = async () => undefined
const all: readonly (Noun | Verb)[] = commands(runDaemon)
const nouns = all.filter(command => 'verbs' in command).map(({ name }) => [name])
const verbs = all.flatMap(command =>
  'verbs' in command ? command.verbs.map(({ name }) => [command.name, name]) : [[command.name]],
)

/** The program in this process, for what it says without asking a daemon. */
async function told(...args: string[]) {
  const out = { stdout: '', stderr: '', code: 0 }
  const program = createProgram({ runDaemon })
  const capture = (command: Command) => {
    command.configureOutput({ writeOut: text => (out.stdout += text), writeErr: text => (out.stderr += text) })
    command.commands.forEach(capture)
  }
  capture(program)
  try {
    await program.parseAsync(args, { from: 'user' })
  } catch (error) {
    out.code = tellFailure(error, text => (out.stderr += text))
  }
  return out
}

t.test('every command has a help that ends with examples of it', async t => {
  for (const call of [[], ...nouns, ...verbs]) {
    const { code, stdout, stderr } = await told(...call, '--help')
    t.same([code, stderr], [0, ''])
    t.ok(stdout.startsWith(['Usage: stillpoint', ...call].join(' ')), stdout)
    const examples = stdout.slice(stdout.indexOf('\nExamples:\n'))
    t.match(examples, new RegExp(`\\n  .*stillpoint (.* )?${call.join(' ')}`), call.join(' '))
    if (verbs.includes(call)) t.match(stdout, '--json')
  }
})

t.test('a mistake in the call exits with 2 and says what was probably meant', async t => {
  const mistake = async (...args: string[]) => {
    const { code, stdout, stderr } = await told(...args)
    t.same([code, stdout], [2, ''], args.join(' '))
    return stderr
  }
  t.equal(await mistake('statsu'), "stillpoint: unknown command 'statsu'; did you mean status?\nSee: stillpoint --help\n")
  t.match(await mistake('backup', 'strat'), /did you mean start\?\nSee: stillpoint backup --help\n$/)
  t.match(await mistake('backup', 'start', 'db', '--pul'), /unknown option '--pul'; did you mean --pull\?\n/)
  t.match(
    await mistake('checkpoint', 'create'),
    /missing required argument 'machine'\nSee: stillpoint checkpoint create --help\n$/,
  )
  t.match(await mistake('checkpoint', 'create', 'a', 'b', 'c'), /too many arguments/)
  t.match(await mistake('backup', 'start', 'db', '--pull', '--expire', '3'), /such as 90s, 10m or 24h/)
  t.match(await mistake('backup', 'start', 'db'), /--pull opens a session/)
  t.match(await mistake('backup', 'start', 'db', '--pull', '--description', 'x'), /name it with --checkpoint/)
  t.match(await mistake('qmp', 'query-jobs', '{"a"'), /no JSON/)
  t.match(await mistake('qmp', 'query-jobs', '[]'), /must be a JSON object/)
  t.match(await mistake('qmp', '{"execute":"query-jobs"}'), /command comes first/)
  t.match(await mistake('backup'), /^Usage: stillpoint backup/, 'a noun alone shows its help')
  t.match(await mistake(), /^Usage: stillpoint /)
})

t.test('started as a user does, it says its version, and tells a mistake', { skip: missing(WHOLE) }, async t => {
  const good = await attempt(LAUNCHER, ['--version'])
  t.match(good.stdout, /^stillpoint \d+\.\d+\.\d+\n$/)
  t.same([good.code, good.stderr], [0, ''])
  const bad = await attempt(LAUNCHER, ['statsu'])
  t.same([bad.code, bad.stdout], [2, ''])
  t.match(bad.stderr, 'did you mean status?')
})

t.test('without a daemon one is told how to start one, with another socket what is wrong with it', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket, folder } = await scriptedDaemon(stack, {})
  const nowhere = await stillpointInThread(['status', '--socket', `${folder}/none.sock`])
  t.match(
    nowhere.stderr,
    /^stillpoint: No daemon answers at .*none\.sock \(No such file or directory\); start one with: stillpoint daemon --config FILE.*\n$/,
  )
  t.same([nowhere.code, nowhere.stdout], [1, ''])

  const stranger = createServer(client => client.end('NBDMAGIC'))
  await new Promise<void>(resolve => stranger.listen(`${folder}/nbd.sock`, resolve))
  stack.defer(() => void stranger.close())
  const wrong = await stillpointInThread(['status', '--socket', `${folder}/nbd.sock`])
  t.match(wrong.stderr, /^stillpoint: .*does not speak QMP.*\n$/)
  t.equal(wrong.code, 1)

  const other = await stillpointInThread(['status'], { STILLPOINT_SOCKET: socket })
  t.match(
    other.stderr,
    /has not been found; what answers at .*control\.sock is no Stillpoint daemon, or one of another version\n$/,
  )
  t.equal(other.code, 1)
})

const nobody = { uid: 65534, gid: 65534 }

async function whyNobodyCannotRun(): Promise<string | false> {
  if (process.getuid?.() !== 0) return 'only root can be somebody else'
  const { code } = await attempt('test', ['-r', MAIN], nobody)
  return code !== 0 && 'another user cannot reach the checkout'
}

t.test('permission denied is said with whom to ask', { skip: await whyNobodyCannotRun() }, async t => {
  await using stack = new AsyncDisposableStack()
  const { socket, folder } = await scriptedDaemon(stack, {})
  chmodSync(folder, 0o755)
  chmodSync(socket, 0o660)
  const denied = await stillpoint(['status', '--socket', socket], nobody)
  t.match(
    denied.stderr,
    /^stillpoint: No permission to connect to the daemon at .*: mode 660, root:root; run this as root, or join the group root/,
  )
  t.equal(denied.code, 1)
  chmodSync(folder, 0o700)
  const hidden = await stillpoint(['status', '--socket', socket], nobody)
  t.match(hidden.stderr, /^stillpoint: No permission to connect .*may not look into its folder/)
})

t.test('the daemon’s refusal is one line, and its exit code is ours', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket } = await scriptedDaemon(stack, {
    'query-daemon': { nbd: [] },
    'backup-begin': () => {
      throw new Refusal('Checkpoint monday cannot be used: disk data was written without it; make a full backup', 20)
    },
    'checkpoint-delete': () => {
      throw new Refusal('Checkpoint monday is in use by the session full', 11)
    },
  })
  const env = { STILLPOINT_SOCKET: socket }
  const unusable = await stillpointInThread(['backup', 'start', 'db', '--pull', '--since', 'monday'], env)
  t.same(unusable, {
    code: 20,
    signal: null,
    stdout: '',
    stderr: 'stillpoint: Checkpoint monday cannot be used: disk data was written without it; make a full backup\n',
  })
  const busy = await stillpointInThread(['checkpoint', 'delete', 'db', 'monday', '--json'], env)
  t.same([busy.code, busy.stdout], [11, ''])

  const debug = await stillpointInThread(['checkpoint', 'delete', 'db', 'monday'], { ...env, STILLPOINT_DEBUG: '1' })
  t.match(debug.stderr, /in use by the session full\n\s+at /, 'the stack is for who asks for it')
})

t.test('of --socket after the verb, --socket before the noun and STILLPOINT_SOCKET, the nearest counts', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket } = await scriptedDaemon(stack, { 'query-backups': [] })
  const wrong = '/nonexistent/stillpoint.sock'
  const env = { STILLPOINT_SOCKET: wrong }
  const ends = await Promise.all([
    stillpointInThread(['backup', 'list', '--socket', socket], env),
    stillpointInThread(['--socket', socket, 'backup', 'list'], env),
    stillpointInThread(['--socket', wrong, 'backup', 'list', '--socket', socket]),
    stillpointInThread(['backup', 'list'], { STILLPOINT_SOCKET: socket }),
  ])
  t.same(
    ends.map(({ code }) => code),
    [0, 0, 0, 0],
  )
})

t.test('a reader that has enough ends it quietly; a full disk does not', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket } = await scriptedDaemon(stack, { many: Array.from({ length: 50_000 }, (_, index) => ({ index })) })
  const shell = (script: string) =>
    attempt('sh', ['-c', script, 'sh', process.execPath, MAIN], { env: environment({ STILLPOINT_SOCKET: socket }) })
  const cut = await shell('{ "$1" "$2" qmp many; echo $? >&2; } | head -n 1')
  t.same([cut.stdout, cut.stderr], ['[\n', '0\n'])
  const full = await shell('"$1" "$2" qmp many > /dev/full')
  t.equal(full.code, 1)
  t.match(full.stderr, /^stillpoint: cannot write to standard output: .*\n$/)
})

t.test('interrupted, it ends as a shell calls 130 and 143', async t => {
  await using stack = new AsyncDisposableStack()
  const daemon = await scriptedDaemon(stack, { slow: NEVER })
  const interrupted = async (signal: 'INT' | 'TERM') => {
    const before = daemon.asked.length
    // A shell that waits for it, as one at a terminal does; the signal is for the program alone.
    const script = `"$1" "$2" qmp slow & trap '' INT; while ! kill -0 $!; do :; done; read go; kill -${signal} $!; wait $!; echo $?`
    const child = spawn('bash', ['-mc', script, 'sh', process.execPath, MAIN], {
      env: { ...process.env, ...environment({ STILLPOINT_SOCKET: daemon.socket }) },
      stdio: ['pipe', 'pipe', 'ignore'],
    })
    while (daemon.asked.length === before) await sleep(20)
    child.stdin.end('\n')
    return (await text(child.stdout)).trim()
  }
  t.equal(await interrupted('INT'), '130')
  t.equal(await interrupted('TERM'), '143')
})

t.test('somebody at a terminal is told what takes long, and others are not', { skip: missing('script') }, async t => {
  await using stack = new AsyncDisposableStack()
  const daemon = await scriptedDaemon(stack, { 'query-backups': NEVER })
  const terminal = stack.use(
    new Terminal([process.execPath, MAIN, 'backup', 'list'], environment({ STILLPOINT_SOCKET: daemon.socket })),
  )
  await terminal.reads(/^Waiting for the daemon's answer to query-backups; \^C leaves it to it\.\n$/)
  terminal.type('\x03')
  t.equal(await terminal.end(), 130)
})

t.test('status --wait is there when a daemon comes', async t => {
  await using stack = new AsyncDisposableStack()
  const { folder } = await scriptedDaemon(stack, {})
  const socket = `${folder}/later.sock`
  const waiting = stillpoint(['status', '--json', '--wait', '20s', '--socket', socket])
  await sleep(500)
  const later = await scriptedDaemon(stack, { 'query-daemon': 1, 'query-machines': 2, 'query-backups': 3, 'query-jobs': 4 })
  renameSync(later.socket, socket)
  t.match(await waiting, { code: 0, stdout: '{"daemon":1,"machines":2,"backups":3,"jobs":4}\n' })
})

t.test('the program loads what it needs, and no more, to say its version', async t => {
  const packages = new Set<string>()
  const files = new Set<string>()
  const visit = (file: string) => {
    if (files.has(file)) return
    files.add(file)
    // Imports that are left after the types have gone; those that wait for their use are calls.
    for (const [, name = ''] of readFileSync(file, 'utf8').matchAll(/^(?:import|export)\b[^;]*?from ['"]([^'"]+)['"]/gm)) {
      if (name.startsWith('.')) visit(join(dirname(file), name))
      else if (!name.startsWith('node:')) packages.add(name)
    }
  }
  visit(MAIN.replace('test/helpers/stillpoint-main.js', 'src/cli/program.js'))
  t.same([...packages], ['commander'])
  t.ok(files.size > 10)
  const folders = new Set([...files].map(file => file.split('/dist/src/')[1]!.split('/')[0]))
  t.same(folders, new Set(['base', 'cli']))
})

t.test('a full disk is no bug, also where putting things away has failed for it too', async t => {
  const file = { [Symbol.asyncDispose]: () => Promise.reject(new NoSpace('disk.qcow2: No space left on device')) }
  let said = ''
  try {
    await using _file = file
    throw new NoSpace('disk.qcow2: No space left on device')
  } catch (error) {
    t.equal(
      tellFailure(error, text => (said += text)),
      1,
    )
  }
  t.equal(said, 'stillpoint: disk.qcow2: No space left on device\n')
})

const nameOf = async (...words: string[]) => (await oneCommand(words, runDaemon))?.name
const contentOf = (command: Noun | Verb) => ('verbs' in command ? command.verbs.map(({ name }) => name) : [command.summary])

t.test('the command that runs is loaded alone, and is the one that the list has', async t => {
  t.strictSame([...Object.keys(loaders), 'completion'].toSorted(), all.map(({ name }) => name).toSorted())
  for (const [name, load] of Object.entries(loaders)) {
    const alone = await load(runDaemon)
    t.equal(alone.name, name)
    t.strictSame(contentOf(alone), contentOf(all.find(one => one.name === name)!))
  }
  t.equal(
    await nameOf('--json', '--socket', 'status', '--socket=x', 'restore', '--help'),
    'restore',
    'the options before it count',
  )
  for (const words of [[], ['--help'], ['--socket'], ['help', 'restore'], ['completion', 'bash'], ['restor'], ['toString']])
    t.equal(await nameOf(...words), undefined, `all are loaded for: ${words.join(' ')}`)
})
