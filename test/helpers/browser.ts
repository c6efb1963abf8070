// A headless Chromium, spoken to by its DevTools protocol over a pipe: what a person would see of a page.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Readable, Writable } from 'node:stream'
import { missing } from './tools.ts'

const names = ['chromium-headless-shell', 'chromium', 'google-chrome']
const CHROMIUM = names.find(name => !missing(name))

/** For `{ skip }`. */
export const noBrowser = CHROMIUM === undefined && 'there is no chromium'

interface Message {
  readonly id?: number
  readonly sessionId?: string
  readonly method?: string
  readonly params?: Record<string, unknown>
  readonly result?: Record<string, unknown>
  readonly error?: { readonly message: string }
}

export interface Look {
  readonly width: number
  readonly dark?: boolean
  readonly reducedMotion?: boolean
}

class Pipe {
  readonly #waiting = new Map<number, PromiseWithResolvers<Record<string, unknown>>>()
  #next = 1
  #text = ''
  onEvent: (message: Message) => void = () => {}

  constructor(
    private readonly to: Writable,
    from: Readable,
  ) {
    from.setEncoding('utf8')
    from.on('data', (data: string) => this.#take(data))
    from.on('close', () => this.#end('the browser has ended'))
    to.on('error', error => this.#end(String(error)))
  }

  ask(method: string, params: object = {}, sessionId?: string) {
    const id = this.#next++
    const waiting = Promise.withResolvers<Record<string, unknown>>()
    this.#waiting.set(id, waiting)
    this.to.write(`${JSON.stringify({ id, method, params, sessionId })}\0`)
    return waiting.promise
  }

  #take(data: string) {
    const parts = (this.#text + data).split('\0')
    this.#text = parts.pop()!
    for (const part of parts) {
      const message = JSON.parse(part) as Message
      const waiting = message.id === undefined ? undefined : this.#waiting.get(message.id)
      if (!waiting) this.onEvent(message)
      else if (message.error) waiting.reject(new Error(message.error.message))
      else waiting.resolve(message.result ?? {})
      if (message.id !== undefined) this.#waiting.delete(message.id)
    }
  }

  #end(why: string) {
    for (const waiting of this.#waiting.values()) waiting.reject(new Error(why))
    this.#waiting.clear()
  }
}

export class Browser {
  /** What the page and the browser complained of: exceptions, console errors, what the policy forbade. */
  readonly complaints: string[] = []

  private constructor(
    private readonly pipe: Pipe,
    private readonly session: string,
  ) {
    pipe.onEvent = ({ method, params = {} }) => {
      if (method === 'Runtime.exceptionThrown') this.complaints.push(JSON.stringify(params['exceptionDetails']))
      if (method === 'Runtime.consoleAPICalled' && params['type'] === 'error')
        this.complaints.push(JSON.stringify(params['args']))
      const entry = params['entry'] as { level: string; text: string; url?: string } | undefined
      if (method === 'Log.entryAdded' && entry?.level === 'error') this.complaints.push(`${entry.text} ${entry.url ?? ''}`)
    }
  }

  /** One page of one browser, which goes with the stack. */
  static async start(stack: AsyncDisposableStack): Promise<Browser> {
    const profile = await mkdtemp(join(tmpdir(), 'stillpoint-browser-'))
    stack.defer(() => rm(profile, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 }))
    const child = spawn(
      CHROMIUM!,
      [
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--disable-dev-shm-usage',
        '--no-first-run',
        '--disable-background-networking',
        '--disable-component-update',
        '--remote-debugging-pipe',
        `--user-data-dir=${profile}`,
        'about:blank',
      ],
      // A group of its own: its helpers hold the pipe open too.
      {
        detached: true,
        stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'],
        env: { ...process.env, TZ: 'UTC', LANG: 'C.UTF-8' },
      },
    )
    const exited = once(child, 'exit')
    stack.defer(async () => {
      process.kill(-child.pid!, 'SIGKILL')
      await exited
      for (const pipe of [child.stdio[3], child.stdio[4]]) pipe?.destroy()
    })
    const pipe = new Pipe(child.stdio[3] as Writable, child.stdio[4] as Readable)
    const { targetId } = await pipe.ask('Target.createTarget', { url: 'about:blank' })
    const { sessionId } = await pipe.ask('Target.attachToTarget', { targetId, flatten: true })
    const browser = new Browser(pipe, sessionId as string)
    for (const domain of ['Page', 'Runtime', 'Log', 'Accessibility']) await browser.ask(`${domain}.enable`)
    return browser
  }

  ask(method: string, params: object = {}) {
    return this.pipe.ask(method, params, this.session)
  }

  async look({ width, dark = false, reducedMotion = false }: Look) {
    await this.ask('Emulation.setDeviceMetricsOverride', { width, height: 900, deviceScaleFactor: 1, mobile: width < 600 })
    await this.ask('Emulation.setEmulatedMedia', {
      features: [
        { name: 'prefers-color-scheme', value: dark ? 'dark' : 'light' },
        { name: 'prefers-reduced-motion', value: reducedMotion ? 'reduce' : 'no-preference' },
      ],
    })
  }

  async open(url: string) {
    await this.ask('Page.navigate', { url })
  }

  /** What an expression is in the page, awaited there. */
  async value<T>(expression: string): Promise<T> {
    const { result, exceptionDetails } = await this.ask('Runtime.evaluate', {
      expression,
      awaitPromise: true,
      returnByValue: true,
    })
    if (exceptionDetails) throw new Error(`${expression}: ${JSON.stringify(exceptionDetails)}`)
    return (result as { value: T }).value
  }

  /** Waits until an expression is true there. */
  async until(expression: string) {
    while (!(await this.value<boolean>(`Boolean(${expression})`))) await new Promise(resolve => setTimeout(resolve, 50))
  }

  async press(key: string, code: number) {
    for (const type of ['keyDown', 'keyUp'])
      await this.ask('Input.dispatchKeyEvent', {
        type,
        key,
        windowsVirtualKeyCode: code,
        ...(key === 'Enter' && type === 'keyDown' && { text: '\r' }),
      })
  }

  /** As assistive programs are told: role and name of all that is not ignored. */
  async accessible(): Promise<{ role: string; name: string }[]> {
    const { nodes } = (await this.ask('Accessibility.getFullAXTree')) as {
      nodes: { ignored: boolean; role?: { value: string }; name?: { value: string } }[]
    }
    return nodes.filter(({ ignored }) => !ignored).map(({ role, name }) => ({ role: role?.value ?? '', name: name?.value ?? '' }))
  }

  /** The whole page, as PNG. */
  async picture(): Promise<Buffer> {
    const { data } = await this.ask('Page.captureScreenshot', { format: 'png', captureBeyondViewport: true })
    return Buffer.from(data as string, 'base64')
  }
}
