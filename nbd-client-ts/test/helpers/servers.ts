// Other people's NBD servers, each on a unix socket of its own, ended with the stack they were started on.

import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

/** For a test's `skip`: the reason, or false. */
export const missing = (...programs: string[]) => {
  const absent = programs.filter(program => spawnSync('sh', ['-c', `command -v ${program}`]).status !== 0)
  return absent.length > 0 && `${absent.join(' and ')} not installed`
}

/** A folder that goes with the stack. */
export function folder(stack: AsyncDisposableStack) {
  const path = mkdtempSync(join(tmpdir(), 'nbd-client-'))
  stack.defer(() => rmSync(path, { recursive: true }))
  return path
}

export interface Server {
  readonly socket: string
  readonly process: ChildProcess
  /** For an export name and further parameters of the URI. */
  uri(exportName?: string, parameters?: string): string
  stop(signal?: NodeJS.Signals): Promise<void>
}

/** Ends it and waits until it has. */
async function stop(child: ChildProcess, signal: NodeJS.Signals = 'SIGTERM') {
  if (child.exitCode !== null || child.signalCode !== null) return
  const exit = once(child, 'exit')
  child.kill(signal)
  await exit
}

async function start(stack: AsyncDisposableStack, program: string, args: string[], socket: string): Promise<Server> {
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'] })
  const said: Buffer[] = []
  child.stderr.on('data', (data: Buffer) => said.push(data))
  stack.defer(() => stop(child, 'SIGKILL'))
  for (let tries = 0; !(await answers(socket)); tries++) {
    if (child.exitCode !== null || tries > 400)
      throw new Error(`${program} does not listen: ${Buffer.concat(said).toString() || `exit code ${child.exitCode}`}`)
    await sleep(25)
  }
  return {
    socket,
    process: child,
    uri: (exportName = '', parameters = '') =>
      `nbd+unix:///${encodeURIComponent(exportName)}?socket=${socket}${parameters && `&${parameters}`}`,
    stop: signal => stop(child, signal),
  }
}

const answers = (path: string) =>
  new Promise<boolean>(resolve => {
    const socket = net.connect({ path })
    socket.once('error', () => resolve(false))
    // Waits for the greeting: to be closed before it is a fault for some.
    socket.once('data', () => {
      socket.destroy()
      resolve(true)
    })
  })

let count = 0

/** nbdkit with these arguments: flags, plugin and its parameters. */
export function nbdkit(stack: AsyncDisposableStack, ...args: string[]) {
  const socket = join(folder(stack), `nbdkit-${++count}.sock`)
  return start(stack, 'nbdkit', ['--foreground', '--exit-with-parent', '--unix', socket, ...args], socket)
}

/** qemu-nbd with these arguments; it serves any number of clients, one after the other or at once. */
export function qemuNbd(stack: AsyncDisposableStack, ...args: string[]) {
  const socket = join(folder(stack), `qemu-${++count}.sock`)
  return start(stack, 'qemu-nbd', ['--persistent', '--shared=0', `--socket=${socket}`, ...args], socket)
}

/**
 * Debian's nbd-server; its configuration goes on with these lines behind `[generic]`. It cannot choose a free port, so it is started for each client that
 * connects to a socket of ours, as by inetd.
 */
export async function nbdServer(stack: AsyncDisposableStack, sections: string) {
  const dir = folder(stack)
  const [socket, config] = [join(dir, 'nbd.sock'), join(dir, 'config')]
  writeFileSync(config, `[generic]\nport = 0\nallowlist = true\n${sections}\n`)
  const children: ChildProcess[] = []
  const server = net.createServer({ pauseOnConnect: true }, client => {
    children.push(spawn('nbd-server', ['-d', '-C', config], { stdio: [client, 'ignore', 'ignore'] }))
    client.destroy() // it is the child's now
  })
  stack.defer(async () => void (await Promise.all(children.map(child => stop(child, 'SIGKILL')))))
  await new Promise<void>(resolve => server.listen(socket, resolve))
  stack.defer(() => void server.close())
  return { uri: (exportName: string) => `nbd+unix:///${exportName}?socket=${socket}` }
}

/** Runs a program to its end, and returns what it printed. */
export function run(program: string, ...args: string[]) {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: 'utf8', timeout: 30_000 })
  if (error) throw error
  if (status !== 0) throw new Error(`${program} ${args.join(' ')}: ${stderr || stdout || `exit code ${status}`}`)
  return stdout
}
