// NBD servers to be compared: ours and qemu-storage-daemon, started with the same options.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { find, root } from './demo/tools.ts'

const START_MS = 30_000

export interface Server {
  /** Of an export, for fio and other clients of libnbd. */
  readonly uriOf: (node: string) => string
}

export const servers = {
  stillpoint: [process.execPath, join(root, 'dist/src/main.js'), 'daemon', '--log-level', 'warn'],
  'qemu-storage-daemon': ['qemu-storage-daemon'],
} as const

export type ServerName = keyof typeof servers

/** Exports nodes of the options (each as of --blockdev); ends with the stack. The socket is in a folder of the caller's. */
export async function startServer(
  stack: AsyncDisposableStack,
  name: ServerName,
  socket: string,
  nodes: readonly string[],
  exported: readonly string[] = ['disk'],
): Promise<Server> {
  await startProgram(stack, [...servers[name], ...daemonOptions(socket, nodes, exported)], socket)
  return { uriOf: node => `nbd+unix:///${node}?socket=${socket}` }
}

/** What both daemons understand. */
export const daemonOptions = (socket: string, nodes: readonly string[], exported: readonly string[] = ['disk']) => [
  ...nodes.flatMap(node => ['--blockdev', node]),
  '--nbd-server',
  `addr.type=unix,addr.path=${socket}`,
  ...exported.flatMap(node => ['--export', `type=nbd,id=export-${node},node-name=${node},name=${node},writable=on`]),
]

/** Any program that listens at the socket, once it does. Returns its process id. */
export async function startProgram(
  stack: AsyncDisposableStack,
  [program = '', ...args]: readonly string[],
  socket: string,
  env: Readonly<Record<string, string>> = {},
): Promise<number> {
  const child = spawn(find(program) ?? program, args, { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, ...env } })
  const said: Buffer[] = []
  child.stderr.on('data', (data: Buffer) => said.push(data))
  const gone = once(child, 'exit')
  stack.defer(async () => {
    child.kill()
    await gone
  })
  for (const deadline = performance.now() + START_MS; !(await accepts(socket));) {
    if (child.exitCode !== null || performance.now() > deadline)
      throw new Error(`${program} has not started: ${Buffer.concat(said).toString()}`)
    await sleep(20)
  }
  return child.pid!
}

const accepts = (path: string) =>
  new Promise<boolean>(resolve => {
    const socket = connect(path)
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', () => resolve(false))
  })
