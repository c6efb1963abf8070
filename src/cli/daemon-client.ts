// A daemon to ask, and what to do when there is none.

import { readFile, stat } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { NoDaemon, PATIENCE_MS as GREETING_MS, QmpClient, QmpError, type QmpClientOptions } from '../control/qmp-client.ts'
import { tellOnTerminal } from './output.ts'
import type { Replies } from './replies.ts'

const POLL_MS = 50
/** Then somebody at a terminal is told what takes so long. */
const PATIENCE_MS = 3000

/** Nobody listens, which may change when a daemon is started. */
function isNotThere(error: unknown): boolean {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    const { code } = cause as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ECONNREFUSED') return true
  }
  return false
}

/** The daemon at a control socket. */
export class Daemon implements AsyncDisposable {
  private constructor(
    readonly client: QmpClient,
    private readonly socket: string,
  ) {}

  /** Waits so long for a daemon to come. @throws NoDaemon, NotQmp, ConnectionLost */
  static async connect(socket: string, waitMs = 0): Promise<Daemon> {
    const until = performance.now() + waitMs
    for (;;) {
      try {
        // Who listens may be systemd, for a daemon that has only just been started.
        const timeoutMs = Math.max(GREETING_MS, until - performance.now())
        return new Daemon(await connectClient(socket, { timeoutMs }), socket)
      } catch (error) {
        if (!isNotThere(error) || performance.now() >= until) throw error
        await sleep(POLL_MS)
      }
    }
  }

  /** @throws QmpError, ConnectionLost */
  async ask<Command extends keyof Replies>(command: Command, args?: object): Promise<Replies[Command]> {
    const notice = setTimeout(
      () => tellOnTerminal(`Waiting for the daemon's answer to ${command}; ^C leaves it to it.`),
      PATIENCE_MS,
    )
    try {
      return (await this.client.execute(command, args)) as Replies[Command]
    } catch (error) {
      if (!(error instanceof QmpError) || error.qmpClass !== 'CommandNotFound') throw error
      const who = `what answers at ${this.socket} is no Stillpoint daemon, or one of another version`
      throw new QmpError(error.qmpClass, `${error.desc}; ${who}`, error.data)
    } finally {
      clearTimeout(notice)
    }
  }

  [Symbol.asyncDispose]() {
    return this.client[Symbol.asyncDispose]()
  }
}

/** A client that knows no commands. @throws NoDaemon, NotQmp, ConnectionLost */
export async function connectClient(socket: string, options?: QmpClientOptions): Promise<QmpClient> {
  try {
    return await QmpClient.connect(socket, options)
  } catch (error) {
    if (!(error instanceof NoDaemon)) throw error
    throw new NoDaemon(await explain(socket, error), { cause: error })
  }
}

/** Who may connect, where that is the trouble. */
async function explain(socket: string, error: NoDaemon): Promise<string> {
  if ((error.cause as NodeJS.ErrnoException | undefined)?.code !== 'EACCES') return error.message
  const cannot = `No permission to connect to the daemon at ${socket}`
  const owner = await ownerOf(socket)
  if (!owner) return `${cannot}: this user may not look into its folder; run this as root or as the daemon's user`
  return `${cannot}: ${owner.mode} ${owner.user}:${owner.group}; run this as root, or join the group ${owner.group} and log in again`
}

async function ownerOf(socket: string) {
  try {
    const { uid, gid, mode } = await stat(socket)
    return {
      user: await nameOf('/etc/passwd', uid),
      group: await nameOf('/etc/group', gid),
      mode: `mode ${(mode & 0o777).toString(8)},`,
    }
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EACCES' || code === 'ENOENT') return undefined
    throw error
  }
}

/** passwd(5) and group(5) have the number in the third field. */
async function nameOf(file: string, id: number): Promise<string> {
  const lines = (await readFile(file, 'utf8')).split('\n')
  return lines.map(line => line.split(':')).find(fields => Number(fields[2]) === id && fields[2] !== '')?.[0] ?? String(id)
}
