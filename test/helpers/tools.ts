// Other people's programs, run to their end, and whether they are there.

import { spawn } from 'node:child_process'
import { accessSync, constants, existsSync } from 'node:fs'
import { delimiter, join } from 'node:path'

const folders = [...(process.env['PATH'] ?? '').split(delimiter), '/usr/sbin', '/sbin']

const isExecutable = (path: string) => {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}

/** The path of a program, where it is there. */
export const find = (tool: string) => folders.map(folder => join(folder, tool)).find(isExecutable)

/** For `{ skip }`: false where all are there, else why not. A name with a slash is a file that must exist. */
export function missing(...tools: string[]): string | false {
  const absent = tools.filter(tool => (tool.includes('/') ? !existsSync(tool) : !find(tool)))
  return absent.length > 0 && `${absent.join(', ')} is not installed`
}

/** Debian's module for its own Python, which need not be the first one on PATH. */
export const PYTHON = '/usr/bin/python3'
export const PYTHON_LIBNBD = '/usr/lib/python3/dist-packages/nbd.py'

export interface Ended {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

interface Circumstances {
  readonly input?: string
  readonly timeoutMs?: number
  readonly cwd?: string
  /** Beside our own. */
  readonly env?: Readonly<Record<string, string | undefined>>
  /** Who runs it, by number; only root may choose. */
  readonly uid?: number
  readonly gid?: number
}

/** Runs a program while ours go on in this process, and waits for its end. */
export async function attempt(
  tool: string,
  args: readonly string[],
  { input = '', timeoutMs = 30_000, env, ...more }: Circumstances = {},
): Promise<Ended> {
  const options = { timeout: timeoutMs, killSignal: 'SIGKILL', env: { ...process.env, ...env }, ...more } as const
  const child = spawn(find(tool) ?? tool, args, options)
  const stdout: Buffer[] = []
  const stderr: Buffer[] = []
  child.stdout.on('data', (data: Buffer) => stdout.push(data))
  child.stderr.on('data', (data: Buffer) => stderr.push(data))
  // It has not read all of its input; where there is none it was gone before that was said.
  child.stdin.on('error', error => input !== '' && stderr.push(Buffer.from(String(error))))
  child.stdin.end(input)
  const { promise, resolve, reject } = Promise.withResolvers<readonly [number | null, NodeJS.Signals | null]>()
  child.once('error', reject)
  child.once('close', (...how) => resolve(how))
  const [code, signal] = await promise
  return { code, signal, stdout: Buffer.concat(stdout).toString(), stderr: Buffer.concat(stderr).toString() }
}

/** The same for a program that must succeed: what it printed. */
export async function run(tool: string, args: readonly string[], options?: Circumstances) {
  const { code, signal, stdout, stderr } = await attempt(tool, args, options)
  if (code !== 0) throw new Error(`${tool} ${args.join(' ')}: ${signal ?? `exit code ${code}`}\n${stdout}${stderr}`)
  return stdout
}
