// `stillpoint qmp`: one command, a stream of them, and the shell on a terminal.

import { readFileSync, statSync } from 'node:fs'
import { spawn } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { Refusal, scriptedDaemon } from '../helpers/scripted-daemon.ts'
import { environment, MAIN, stillpoint } from '../helpers/stillpoint.ts'
import { Terminal } from '../helpers/terminal.ts'
import { missing } from '../helpers/tools.ts'

const replies = {
  'query-commands': ['query-commands', 'query-jobs', 'query-block', 'block-dirty-bitmap-add', 'slow', 'quit'].map(name => ({
    name,
  })),
  'query-jobs': [{ id: 'a', type: 'backup' }],
  'query-block': [],
  'block-dirty-bitmap-add': (args: object) => args,
  refuse: () => {
    throw new Refusal('No', 11)
  },
  quit: {},
}

t.test('one command: what it returns is printed as JSON', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket, asked } = await scriptedDaemon(stack, replies)
  const env = { STILLPOINT_SOCKET: socket }
  const [people, programs, withArguments, refused, unknown] = await Promise.all([
    stillpoint(['qmp', 'query-jobs'], { env }),
    stillpoint(['qmp', 'query-jobs', '--json'], { env }),
    stillpoint(['qmp', 'block-dirty-bitmap-add', '{"node": "db.root", "name": "mine"}'], { env }),
    stillpoint(['qmp', 'refuse'], { env }),
    stillpoint(['qmp', 'query-job'], { env }),
  ])
  t.match(people, { code: 0, stdout: '[{ "id": "a", "type": "backup" }]\n', stderr: '' })
  t.match(programs, { code: 0, stdout: '[{"id":"a","type":"backup"}]\n', stderr: '' })
  t.match(withArguments, { code: 0, stdout: '{ "node": "db.root", "name": "mine" }\n', stderr: '' })
  t.match(refused, { code: 11, stdout: '', stderr: 'stillpoint: No\n' })
  t.match(unknown, {
    code: 1,
    stdout: '',
    stderr: /^stillpoint: The command query-job has not been found; did you mean query-jobs\?\n$/,
  })
  t.ok(asked.every(({ command }) => command !== 'qmp_capabilities'))
})

t.test('a stream: a reply for each line, in order, and an exit code for all', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket } = await scriptedDaemon(stack, replies)
  const stream = async (input: string) => {
    const { code, stdout, stderr } = await stillpoint(['qmp'], { env: { STILLPOINT_SOCKET: socket }, input })
    t.equal(stderr, '')
    return [code, ...stdout.split('\n').slice(0, -1)]
  }
  t.same(await stream('{"execute": "qmp_capabilities"}\n\n# a comment\n{"execute": "query-block", "id": 7}\nquery-jobs\n'), [
    0,
    '{"return":{}}',
    '{"return":[],"id":7}',
    '{"return":[{"id":"a","type":"backup"}]}',
  ])
  t.same(await stream('query-block\nrefuse\nblock-dirty-bitmap-add node=db.root\na b\n'), [
    3,
    '{"return":[]}',
    '{"error":{"class":"GenericError","desc":"No","data":{"exit-code":11}}}',
    '{"return":{"node":"db.root"}}',
    '{"error":{"class":"GenericError","desc":"Cannot read \\"b\\"; arguments are key=value, or a JSON object"}}',
  ])
  t.same(await stream('refuse'), [1, '{"error":{"class":"GenericError","desc":"No","data":{"exit-code":11}}}'])
  t.same(await stream('quit\nquery-block\n'), [0, '{"return":{}}'], 'quit is the last')
  t.same(await stream(''), [0])
})

t.test('a stream shows events as they come, and ends with the daemon', async t => {
  await using stack = new AsyncDisposableStack()
  const daemon = await scriptedDaemon(stack, replies)
  const child = spawn(process.execPath, [MAIN, 'qmp'], {
    env: { ...process.env, ...environment({ STILLPOINT_SOCKET: daemon.socket }) },
  })
  const ended = new Promise<number | null>(resolve => child.once('close', resolve))
  const said = { stdout: '', stderr: '' }
  child.stdout.on('data', data => (said.stdout += data))
  child.stderr.on('data', data => (said.stderr += data))
  const until = async (text: string) => {
    for (let tries = 0; !said.stdout.includes(text) && tries < 400; tries++) await sleep(25)
    t.match(said.stdout, text)
  }
  child.stdin.write('query-block\n')
  await until('{"return":[]}\n')
  daemon.emit('BACKUP_BROKEN', { machine: 'db', session: 'full', reason: 'scratch space is full' })
  await until(
    '{"event":"BACKUP_BROKEN","data":{"machine":"db","session":"full","reason":"scratch space is full"},"timestamp":{"seconds":1764031327,"microseconds":0}}\n',
  )
  daemon.hangUp()
  t.equal(await ended, 1, 'although standard input is open')
  t.match(said.stderr, /^stillpoint: The daemon at .* ended the connection\n$/)
})

t.test('a shell', { skip: missing('script') }, async t => {
  await using stack = new AsyncDisposableStack()
  const daemon = await scriptedDaemon(stack, replies)
  const home = { XDG_STATE_HOME: `${daemon.folder}/state`, ...environment({ STILLPOINT_SOCKET: daemon.socket }) }
  const shell = () => stack.use(new Terminal([process.execPath, MAIN, 'qmp'], home))

  await t.test('completes, shows what commands return and what events come, and leaves with ^D', async t => {
    const terminal = shell()
    await terminal.reads(/Connected to .*\nqmp> $/)
    terminal.type('query-j\t')
    await terminal.reads(/query-jobs $/)
    terminal.type('\r')
    await terminal.reads(/\n\[{ "id": "a", "type": "backup" }\]\nqmp> $/)
    terminal.type('query-\t')
    await terminal.reads(/query-$/)
    terminal.type('\t')
    await terminal.reads(/query-commands\s+query-jobs\s+qmp> query-$/)
    daemon.emit('JOB_STATUS_CHANGE', { id: 'a', status: 'running' })
    await terminal.reads(/\d\d:\d\d:\d\d JOB_STATUS_CHANGE { "id": "a", "status": "running" }\n(.*\n)*qmp> query-$/)
    terminal.type('block\r')
    await terminal.reads(/\n\[\]\nqmp> $/)
    terminal.type('query-blok\r')
    await terminal.reads(/CommandNotFound: .*; did you mean query-block\?\nqmp> $/)
    terminal.type('half a line\x03')
    await terminal.reads(/half a line\nqmp> (.*qmp> )?$/)
    terminal.type('\x03')
    await terminal.reads(/\^D leaves\.\nqmp> $/)
    terminal.type('help\r')
    await terminal.reads(/COMMAND key=value/)
    await terminal.reads(/qmp> $/)
    terminal.type('\x04')
    t.equal(await terminal.end(), 0)
  })

  await t.test('remembers what was typed, for the user alone', async t => {
    const file = `${daemon.folder}/state/stillpoint/qmp-history`
    t.match(readFileSync(file, 'utf8'), /^query-jobs\s*\nquery-block\nquery-blok\nhelp\n$/)
    t.equal(statSync(file).mode & 0o777, 0o600)
    const terminal = shell()
    await terminal.reads(/qmp> $/)
    terminal.type('\x1b[A\x1b[A\x1b[A')
    await terminal.reads(/query-block$/)
    terminal.type('\r')
    await terminal.reads(/\n\[\]\nqmp> $/)
    terminal.type('exit\r')
    t.equal(await terminal.end(), 0)
  })

  await t.test('ends when the daemon does', async t => {
    const terminal = shell()
    await terminal.reads(/qmp> $/)
    daemon.hangUp()
    t.equal(await terminal.end(), 1)
    t.match(terminal.text, /stillpoint: The daemon at .* ended the connection/)
    const quitting = shell()
    await quitting.reads(/qmp> $/)
    quitting.type('quit\r')
    t.equal(await quitting.end(), 0)
  })
})
