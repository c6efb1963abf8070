// The program, run as a user would.

import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { attempt, type Ended } from './tools.ts'

const root = fileURLToPath(new URL('../../../', import.meta.url))
/** What a user starts. It looks for the right Node first, which takes longer than most commands. */
export const LAUNCHER = `${root}bin/stillpoint`
/** The program as `node` runs it, with a daemon that is only told. */
export const MAIN = `${root}dist/test/helpers/stillpoint-main.js`
/** The whole program. */
export const WHOLE = `${root}dist/src/main.js`

/** Its environment: UTC, and no daemon but the one that is named. */
export const environment = (more: Readonly<Record<string, string>> = {}) => ({
  TZ: 'UTC',
  STILLPOINT_SOCKET: undefined,
  STILLPOINT_DEBUG: undefined,
  ...more,
})

export const stillpoint = (
  args: readonly string[],
  { env, ...more }: { env?: Record<string, string>; input?: string; timeoutMs?: number } & object = {},
) => attempt(process.execPath, [MAIN, ...args], { ...more, env: environment(env) })

/**
 * The same in a thread of this process, at half the price: for what is printed, where neither signals nor terminals matter.
 * The time zone is this process's.
 */
export async function stillpointInThread(args: readonly string[], env: Record<string, string> = {}): Promise<Ended> {
  const worker = new Worker(MAIN, { argv: [...args], env: { ...process.env, ...environment(env) }, stdout: true, stderr: true })
  const { promise, resolve, reject } = Promise.withResolvers<number>()
  worker.once('exit', resolve).once('error', reject)
  const [code, stdout, stderr] = await Promise.all([promise, text(worker.stdout), text(worker.stderr)])
  return { code, signal: null, stdout, stderr }
}
