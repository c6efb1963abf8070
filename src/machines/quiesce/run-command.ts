// Runs a command of the configuration: with a time limit, an environment of its own, and what it said at hand when it fails.

import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { Fault, strerror } from '../../base/errors.ts'

/** A command of the configuration did not do what it is for. */
export class CommandFailed extends Fault {}

/** What a failed command said last is told; more than that is for its own log. */
const MAX_SAID = 2000
/** From the request to end to the end of all patience. */
const GRACE_MS = 1000
/** What is left in the pipes of a command that has ended. */
const REST_MS = 100

/** The daemon's own may hold secrets (env:NAME), so a command gets only these, and what is said to it. */
const INHERITED = ['PATH', 'HOME', 'USER', 'LANG', 'LC_ALL', 'TZ', 'TMPDIR', 'SYSTEMD_EXEC_PID']

export interface CommandToRun {
  /** In a sentence: "the freeze command of machine 'db'". */
  readonly what: string
  /** The program and its arguments. */
  readonly command: readonly string[]
  readonly env: Readonly<Record<string, string>>
  readonly timeoutMs: number
  /** Ends it before its time is up. */
  readonly signal?: AbortSignal | undefined
}

/** @throws CommandFailed when it cannot be started, says that it failed, or takes longer than it may: then it and what it has started is ended */
export async function runCommand({ what, command, env, timeoutMs, signal: end }: CommandToRun): Promise<void> {
  const [program = '', ...args] = command
  const inherited = INHERITED.flatMap(name => (process.env[name] === undefined ? [] : [[name, process.env[name]] as const]))
  const child = spawn(program, args, {
    cwd: '/',
    detached: true, // a process group of its own, which can be ended as a whole
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...Object.fromEntries(inherited), ...env },
  })
  let said = ''
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => (said = (said + text).slice(-MAX_SAID)))
  let exit: [number | null, string | null] | undefined
  try {
    exit = await atMost(timeoutMs, once(child, 'exit') as Promise<[number | null, string | null]>, end)
  } catch (error) {
    throw new CommandFailed(`${what} cannot be run: ${program}: ${strerror(error)}`, { cause: error })
  }
  if (!exit) {
    await endGroup(child)
    const late = end?.aborted ? 'before the daemon' : `within ${timeoutMs / 1000} s`
    throw new CommandFailed(`${what} did not end ${late}, and was ended${quoted(said)}`)
  }
  const [code, signal] = exit
  if (code === 0) return
  if (!child.stdout.closed || !child.stderr.closed) await atMost(REST_MS, once(child, 'close'))
  throw new CommandFailed(`${what} ${code === null ? `was ended by ${signal}` : `failed with ${code}`}${quoted(said)}`)
}

const quoted = (said: string) => {
  const text = said.trim().replaceAll(/\s*\n\s*/g, '; ')
  return text === '' ? '' : `: ${text}`
}

/** Undefined when it takes longer, or when nobody can wait any longer; no timer stays behind. */
async function atMost<T>(ms: number, promise: Promise<T>, end?: AbortSignal): Promise<T | undefined> {
  const waiting = new AbortController()
  const ended = Promise.withResolvers<undefined>()
  const tell = () => ended.resolve(undefined)
  end?.addEventListener('abort', tell)
  if (end?.aborted) tell()
  try {
    return await Promise.race([promise, sleep(ms, undefined, { signal: waiting.signal }), ended.promise])
  } finally {
    end?.removeEventListener('abort', tell)
    waiting.abort()
  }
}

async function endGroup(child: ChildProcess) {
  const gone = once(child, 'exit')
  signalGroup(child, 'SIGTERM')
  await atMost(GRACE_MS, gone)
  signalGroup(child, 'SIGKILL')
  await gone
}

function signalGroup({ pid }: ChildProcess, signal: NodeJS.Signals) {
  try {
    process.kill(-pid!, signal)
  } catch (error) {
    // All of it has ended meanwhile.
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}
