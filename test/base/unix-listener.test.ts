// A server's unix socket takes the place of a dead one's, and of nothing else.

import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { connect, createServer, type Server } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { listenUnix } from '../../src/base/unix-listener.ts'

function place(t: Test) {
  const folder = mkdtempSync(join(tmpdir(), 'stillpoint-test-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  return join(folder, 'socket')
}

function server(t: Test): Server {
  const server = createServer(socket => socket.end())
  t.teardown(() => server.close())
  return server
}

const answers = (path: string) =>
  new Promise<boolean>(resolve => {
    const socket = connect(path)
    socket.on('connect', () => resolve(true)).on('error', () => resolve(false))
    socket.on('connect', () => socket.destroy())
  })

/** Leaves a socket as a killed process leaves it. */
function leaveDead(path: string) {
  const program = `require('net').createServer().listen(process.argv[1], () => process.kill(process.pid, 'SIGKILL'))`
  spawnSync(process.execPath, ['-e', program, path])
}

t.test('the socket has its mode whatever the umask, and goes with the server', async t => {
  const path = place(t)
  const mine = server(t)
  const umask = process.umask(0)
  t.teardown(() => process.umask(umask))
  await listenUnix(mine, path)
  t.equal(statSync(path).mode & 0o777, 0o660)
  t.equal(process.umask(0), 0, 'the umask is as before')
  t.ok(await answers(path))
  await new Promise(resolve => mine.close(resolve))
  t.throws(() => statSync(path), { code: 'ENOENT' })
})

t.test('a dead daemon’s socket is replaced', async t => {
  const path = place(t)
  leaveDead(path)
  t.ok(statSync(path).isSocket())
  t.notOk(await answers(path))
  await listenUnix(server(t), path, { mode: 0o600 })
  t.equal(statSync(path).mode & 0o777, 0o600)
  t.ok(await answers(path))
})

t.test('a live daemon’s socket is refused with exit code 11, and goes on answering', async t => {
  const path = place(t)
  await listenUnix(server(t), path)
  await t.rejects(listenUnix(server(t), path), {
    exitCode: 11,
    message: `Another daemon answers at ${path}; stop it first, or give this one a socket of its own`,
  })
  t.ok(await answers(path))
})

t.test('what is no socket is left as it is, links too', async t => {
  const path = place(t)
  writeFileSync(path, 'precious')
  symlinkSync(path, `${path}2`)
  for (const taken of [path, `${path}2`])
    await t.rejects(listenUnix(server(t), taken), {
      message: `${taken} is there and is no socket; remove it, or choose another path`,
    })
  t.equal(statSync(path).size, 8)
})

t.test('a folder that is not there, and a path that is too long, are said with what to do', async t => {
  const path = place(t)
  await t.rejects(listenUnix(server(t), `${path}/deeper`), {
    exitCode: 1,
    message: /^Cannot listen at .*: .*; is its folder there/,
  })
  await t.rejects(listenUnix(server(t), `${path}${'x'.repeat(110)}`), { exitCode: 1, message: /^Cannot listen at / })
})
