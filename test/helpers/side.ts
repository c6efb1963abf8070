// One side of a differential test: a daemon as a process in a folder of its own, a client of its control socket, and the tools that
// are used on it. A daemon that dies is an answer like any other.

import { spawn, type ChildProcess } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { RawClient, type Message } from './control.ts'
import { copyImages } from './made-images.ts'
import type { ImageSpec, Step } from './scenario.ts'
import { attempt } from './tools.ts'
import { matches, normalize, subjectOf, withoutDrains } from './normalize.ts'

const STEP_MS = 20_000
const START_MS = 30_000

const program = fileURLToPath(new URL('../../src/main.js', import.meta.url))

export interface Event {
  readonly event: string
  readonly data: Readonly<Record<string, unknown>>
}

export class Side implements AsyncDisposable {
  /** Of which no step has taken notice yet. */
  #events: Event[] = []
  #objects = new Set<string>()
  #scenarios = 0
  /** The line that is waited for; whoever has given up on it leaves it to the next. */
  #line: Promise<string | undefined> | undefined
  #asked = 0
  /** Commands whose answers come too late for anybody. */
  #givenUp = new Set<unknown>()
  /** Where the images and sockets of the scenario are. */
  folder: string

  private constructor(
    private readonly home: string,
    private readonly child: ChildProcess,
    private readonly client: RawClient,
    private readonly stderr: () => string,
  ) {
    this.folder = home
  }

  static qemu = () =>
    Side.#start(folder => ({
      socket: join(folder, 'control.sock'),
      command: 'qemu-storage-daemon',
      args: ['--chardev', `socket,id=qmp,path=${folder}/control.sock,server=on,wait=off`, '--monitor', 'qmp'],
    }))

  static ours = (env: Readonly<Record<string, string>> = {}) =>
    Side.#start(async folder => {
      const config = join(folder, 'stillpoint.yaml')
      await writeFile(config, `state: ${folder}/state\ncontrol: { socket: ${folder}/control.sock }\nnbd: []\n`)
      return {
        socket: join(folder, 'control.sock'),
        command: process.execPath,
        args: [program, 'daemon', '--log-level', 'warn', '--config', config],
        env,
      }
    })

  static async #start(prepare: (folder: string) => Starting | Promise<Starting>) {
    const home = await mkdtemp(join(tmpdir(), 'stillpoint-side-'))
    const { socket, command, args, env } = await prepare(home)
    const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, ...env } })
    const said: Buffer[] = []
    child.stderr.on('data', (data: Buffer) => said.push(data))
    const stderr = () => Buffer.concat(said).toString()
    try {
      return new Side(home, child, await connect(socket, () => child.exitCode === null, stderr), stderr)
    } catch (error) {
      child.kill('SIGKILL')
      throw error
    }
  }

  /** A folder of its own for each scenario, with its images. */
  async begin(images: Readonly<Record<string, ImageSpec>>) {
    this.folder = join(this.home, String(++this.#scenarios))
    await mkdir(this.folder)
    this.#events = []
    await copyImages(images, this.folder)
  }

  /** Takes away what the scenario has left; false when the daemon is not as new after that. */
  async end(): Promise<boolean> {
    if (!this.lives) return false
    await this.#ask('nbd-server-stop')
    for (const { id } of await this.#list('query-block-exports')) await this.#ask('block-export-del', { id, mode: 'hard' })
    for (let tries = 0; tries < 50; tries++) {
      const jobs = await this.#list('query-jobs')
      for (const { id, status } of jobs) await this.#ask(status === 'concluded' ? 'job-dismiss' : 'job-cancel', { id })
      const nodes = await this.#list('query-named-block-nodes')
      for (const { 'node-name': name } of nodes) await this.#ask('blockdev-del', { 'node-name': name })
      if (jobs.length === 0 && nodes.length === 0) break
      if (tries > 5) await sleep(20)
    }
    for (const id of this.#objects) await this.#ask('object-del', { id })
    this.#objects = new Set()
    const left = (await this.#ask('query-named-block-nodes')) as { return?: readonly unknown[] }
    return this.lives && left.return?.length === 0
  }

  async #list(command: string) {
    const answer = (await this.#ask(command)) as { return?: readonly Record<string, unknown>[] }
    return answer.return ?? []
  }

  get lives() {
    return this.child.exitCode === null && this.child.signalCode === null && !this.client.ended
  }

  /** What came of a step, in a form that can be compared with the other side's. */
  async do(step: Step): Promise<unknown> {
    const answer = await this.#do(JSON.parse(JSON.stringify(step).replaceAll('$D', this.folder)) as Step)
    return normalize(answer, { folder: this.folder, ignoring: step.ignoring ?? [] })
  }

  async #do(step: Step): Promise<unknown> {
    switch (step.kind) {
      case 'command':
        return this.#ask(step.name, step.args)
      case 'event':
        return this.#await(step.name, step.data, step.perJob)
      case 'tool': {
        const { code, signal, stdout, stderr } = await attempt(step.tool, step.args, { timeoutMs: STEP_MS })
        const isJson = code === 0 && (step.tool === 'nbdinfo' || step.args.includes('--output=json'))
        return { code, signal, stdout: isJson ? (JSON.parse(stdout) as unknown) : stdout, stderr }
      }
      case 'content': {
        const copy = join(this.folder, 'copy')
        const { code, signal, stderr } = await attempt('nbdcopy', [step.uri, copy], { timeoutMs: STEP_MS })
        if (code !== 0) return { code, signal, stderr }
        return {
          sha256: createHash('sha256')
            .update(await readFile(copy))
            .digest('hex'),
        }
      }
    }
  }

  async #ask(execute: string, args: object = {}): Promise<unknown> {
    if (execute === 'object-add') this.#objects.add((args as { id: string }).id)
    const asked = ++this.#asked
    this.client.send(JSON.stringify({ execute, arguments: args, id: asked }))
    for (;;) {
      const message = await this.#next()
      if (message === undefined) {
        this.#givenUp.add(asked)
        return this.#death()
      }
      const { id, ...answer } = message
      if (this.#isAnswer(message)) return id === asked ? answer : { unexpected: message }
    }
  }

  /** Events since the last one that was waited for, up to the first that fits; with `perJob` only those of that job. */
  async #await(name: string, data: Event['data'], perJob: boolean): Promise<unknown> {
    for (;;) {
      const pending = this.#events.filter(event => !perJob || subjectOf(event) === (data['id'] ?? data['device']))
      const fresh = withoutDrains(pending)
      const found = fresh.findIndex(event => event.event === name && matches(event.data, data))
      if (found >= 0) {
        const seen = new Set(pending.slice(0, pending.indexOf(fresh[found]!) + 1))
        this.#events = this.#events.filter(event => !seen.has(event))
        return fresh.slice(0, found + 1)
      }
      const message = await this.#next()
      if (message === undefined) return { missing: name, data, instead: fresh, death: await this.#death() }
      if (this.#isAnswer(message)) return { unexpected: message }
    }
  }

  #isAnswer = ({ event, id }: Message) => event === undefined && !this.#givenUp.delete(id)

  /** Those that no step has waited for. */
  async restOfEvents(): Promise<unknown> {
    await this.#ask('query-version')
    const subjects = [...new Set(this.#events.map(subjectOf))].toSorted((a, b) => String(a).localeCompare(String(b)))
    const rest = subjects.map(subject => withoutDrains(this.#events.filter(event => subjectOf(event) === subject)))
    return normalize(rest.flat(), { folder: this.folder, ignoring: [] })
  }

  /** Undefined when the daemon is gone, or says nothing for too long. */
  async #next(): Promise<Message | undefined> {
    using timeout = timer(STEP_MS)
    const line = await Promise.race([(this.#line ??= this.client.line()), timeout.passed])
    if (line === undefined) return undefined
    this.#line = undefined
    const message = JSON.parse(line) as Message
    if (message.event !== undefined) this.#events.push({ event: message.event, data: (message.data ?? {}) as Event['data'] })
    return message
  }

  async #death() {
    if (!this.client.ended) return { silent: `for ${STEP_MS / 1000} s` }
    if (this.child.exitCode === null && this.child.signalCode === null) await once(this.child, 'exit')
    return { died: this.child.signalCode ?? this.child.exitCode, stderr: this.stderr() }
  }

  /** Ends the daemon in an orderly way; what it said on standard error. */
  async stop(): Promise<string> {
    if (this.lives) {
      const gone = once(this.child, 'exit')
      this.child.kill('SIGTERM')
      using late = timer(STEP_MS)
      if ((await Promise.race([gone, late.passed])) === undefined) {
        this.child.kill('SIGKILL')
        return `did not end within ${STEP_MS / 1000} s\n${this.stderr()}`
      }
    }
    return this.stderr()
  }

  /** Ends it as a crash would. */
  async kill() {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return
    const gone = once(this.child, 'exit')
    this.child.kill('SIGKILL')
    await gone
  }

  async [Symbol.asyncDispose]() {
    this.client[Symbol.dispose]()
    await this.kill()
    await rm(this.home, { recursive: true })
  }
}

/** It is ready when it accepts, not when its socket is there. */
async function connect(socket: string, lives: () => boolean, stderr: () => string) {
  for (let waited = 0; ; waited += 10) {
    try {
      return await RawClient.ready(socket)
    } catch (error) {
      if (!lives() || waited > START_MS) throw new Error(`the daemon did not start: ${stderr()}`, { cause: error })
      await sleep(10)
    }
  }
}

interface Starting {
  readonly socket: string
  readonly command: string
  readonly args: readonly string[]
  /** Beside our own. */
  readonly env?: Readonly<Record<string, string>>
}

function timer(ms: number): Disposable & { readonly passed: Promise<undefined> } {
  const { promise, resolve } = Promise.withResolvers<undefined>()
  const timeout = setTimeout(resolve, ms, undefined)
  return { passed: promise, [Symbol.dispose]: () => clearTimeout(timeout) }
}
