// What systemd wants to know of a service (sd_notify(3)): that it is ready, reloads, stops, is alive, and how it does.
//
// Node has no datagram sockets of the unix kind, so the message goes out through koffi, or, without it, by the program systemd-notify.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { messageOf } from './errors.ts'
import type { Log } from './log.ts'

/** From Linux's headers. */
const AF_UNIX = 1
const SOCK_DGRAM = 2
const SOCK_CLOEXEC = 0o2000000
const MSG_DONTWAIT = 0x40
const MSG_NOSIGNAL = 0x4000
const MAX_PATH = 107

const STATUS_MS = 5000

type Send = (message: string) => Promise<void>

export class ServiceManager implements Disposable {
  readonly #timers: NodeJS.Timeout[] = []
  #status = ''
  #failed = false

  private constructor(
    private readonly send: Send,
    private readonly watchdogMs: number | undefined,
    private readonly log: Log,
  ) {}

  /** Undefined where nobody wants to know. Takes the variables away, so that programs that we start do not speak for us. */
  static async fromEnvironment(env: NodeJS.ProcessEnv, log: Log): Promise<ServiceManager | undefined> {
    const { NOTIFY_SOCKET: path, WATCHDOG_USEC: watchdog, WATCHDOG_PID: watched } = env
    for (const name of ['NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID']) delete env[name]
    if (path === undefined || !/^[/@]/.test(path) || Buffer.byteLength(path) > MAX_PATH) return undefined
    const isWatched = watchdog !== undefined && (watched === undefined || Number(watched) === process.pid)
    const watchdogMs = isWatched ? Number(watchdog) / 1000 : undefined
    const send = (await direct(path, env)) ?? byProgram(path, env)
    return new ServiceManager(send, watchdogMs && watchdogMs > 0 ? watchdogMs : undefined, log)
  }

  /** Everything is there. From here on it is told that we are alive, and how we do. */
  async ready(status: () => string) {
    await this.#tell('READY=1')
    const tellStatus = () => {
      const text = status().replaceAll('\n', ' ')
      if (text === this.#status) return
      this.#status = text
      this.#quietly(`STATUS=${text}`)
    }
    tellStatus()
    this.#timers.push(setInterval(tellStatus, STATUS_MS).unref())
    // From the event loop: whoever is stuck there is not alive.
    if (this.watchdogMs !== undefined) {
      this.#quietly('WATCHDOG=1')
      this.#timers.push(setInterval(() => this.#quietly('WATCHDOG=1'), this.watchdogMs / 2).unref())
    }
  }

  /** What `work` does is the reload. */
  async reloading<T>(work: () => Promise<T>): Promise<T> {
    await this.#tell(`RELOADING=1\nMONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`)
    try {
      return await work()
    } finally {
      await this.#tell('READY=1')
    }
  }

  async stopping() {
    this[Symbol.dispose]()
    await this.#tell('STOPPING=1\nSTATUS=Ends what is under way')
  }

  [Symbol.dispose]() {
    for (const timer of this.#timers.splice(0)) clearInterval(timer)
  }

  #quietly(message: string) {
    this.#tell(message).catch((error: unknown) => this.log.error('a bug in what the service manager is told', { err: error }))
  }

  /** That nobody listens ends no daemon. */
  async #tell(message: string) {
    try {
      await this.send(message)
    } catch (error) {
      if (!this.#failed) this.log.warn('the service manager cannot be told how this service does', { err: messageOf(error) })
      this.#failed = true
    }
  }
}

async function direct(path: string, env: NodeJS.ProcessEnv): Promise<Send | undefined> {
  if (env['STILLPOINT_NATIVE'] === 'off') return undefined
  try {
    const { default: koffi } = await import('koffi')
    const libc = koffi.load(null)
    const socket = libc.func('int socket(int, int, int)')
    const sendto = libc.func('int64_t sendto(int, void *, size_t, int, void *, uint32_t)')
    const close = libc.func('int close(int)')
    const name = Buffer.from(path.replace(/^@/, '\0'))
    const address = Buffer.alloc(2 + name.length + (path.startsWith('@') ? 0 : 1))
    address.writeUInt16LE(AF_UNIX, 0)
    name.copy(address, 2)
    const names = new Map(Object.entries(koffi.os.errno).map(([text, number]) => [number, text]))
    const failed = (what: string) => new Error(`${what}: ${names.get(koffi.errno()) ?? koffi.errno()}`)
    return async message => {
      const fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0) as number
      if (fd < 0) throw failed('socket')
      const bytes = Buffer.from(message)
      const sent = sendto(fd, bytes, bytes.length, MSG_DONTWAIT | MSG_NOSIGNAL, address, address.length) as number
      const error = sent < 0 ? failed(path) : undefined
      close(fd)
      if (error) throw error
    }
  } catch {
    return undefined // the program does it
  }
}

const byProgram =
  (path: string, env: NodeJS.ProcessEnv): Send =>
  async message => {
    const fields = message.split('\n')
    const child = spawn('systemd-notify', [`--pid=${process.pid}`, ...fields], {
      stdio: 'ignore',
      env: { ...env, NOTIFY_SOCKET: path },
    })
    const [code] = (await once(child, 'exit')) as [number | null]
    if (code !== 0) throw new Error(`systemd-notify ended with exit code ${code}`)
  }
