// Runs the programs of the demo: ours and other people's.

import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('../../../', import.meta.url))

const folders = [...(process.env['PATH'] ?? '').split(delimiter), '/usr/sbin', '/sbin']

/** Whether a program is installed; programs of the system's administration may not be on everybody's PATH. */
export function find(program: string): string | undefined {
  return folders
    .map(folder => join(folder, program))
    .find(path => {
      try {
        accessSync(path, constants.X_OK)
        return true
      } catch (error) {
        if (['ENOENT', 'EACCES', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return false
        throw error
      }
    })
}

/** What a program printed. @throws Error with what it said when it failed */
export async function run(
  program: string,
  args: readonly string[],
  { codes = [0] }: { readonly codes?: readonly number[] } = {},
) {
  const child = spawn(find(program) ?? program, args, { stdio: ['ignore', 'pipe', 'pipe'] })
  const out: Buffer[] = []
  const err: Buffer[] = []
  child.stdout.on('data', (data: Buffer) => out.push(data))
  child.stderr.on('data', (data: Buffer) => err.push(data))
  const [code, signal] = (await once(child, 'close')) as [number | null, string | null]
  if (code === null || !codes.includes(code))
    throw new Error(
      `${program} ${args.slice(0, 3).join(' ')} ended with ${code ?? signal}:\n${Buffer.concat([...err, ...out]).toString()}`,
    )
  return Buffer.concat(out).toString()
}

/** Our own program's answer, as JSON. */
export async function stillpoint<Answer>(socket: string, ...args: string[]): Promise<Answer> {
  return JSON.parse(
    await run(process.execPath, [join(root, 'dist/src/main.js'), '--socket', socket, ...args, '--json']),
  ) as Answer
}

/** A daemon over a configuration, ready when this returns; it ends with the stack. */
export async function startDaemon(stack: AsyncDisposableStack, config: string): Promise<ChildProcess> {
  const child = spawn(process.execPath, [join(root, 'dist/src/main.js'), 'daemon', '--config', config], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  const exited = once(child, 'exit')
  stack.defer(async () => {
    child.kill('SIGTERM')
    await exited
  })
  let log = ''
  const ready = Promise.withResolvers<void>()
  child.stderr.on('data', (data: Buffer) => {
    log += data.toString()
    if (/ready machines=/.test(log)) ready.resolve()
  })
  await Promise.race([ready.promise, exited.then(() => Promise.reject(new Error(`the daemon did not start:\n${log}`)))])
  return child
}
