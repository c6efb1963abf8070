// A program on a terminal of its own (by script, of util-linux), and somebody who types when he has read what he waits for.

import { spawn, type ChildProcessByStdio } from 'node:child_process'
import type { Readable, Writable } from 'node:stream'
import { stripVTControlCharacters } from 'node:util'

const PATIENCE_MS = 20_000

export class Terminal implements AsyncDisposable {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>
  readonly #ended: Promise<number | null>
  #raw = ''
  /** What has been waited for, and what stands before it, is read. */
  #read = 0
  #more = Promise.withResolvers<void>()

  constructor(command: readonly string[], env: Readonly<Record<string, string | undefined>>) {
    const quoted = command.map(word => `'${word.replaceAll("'", `'\\''`)}'`).join(' ')
    // The exit code is the program's.
    this.#child = spawn('script', ['--quiet', '--return', '--flush', '--command', quoted, '/dev/null'], {
      stdio: ['pipe', 'pipe', 'ignore'],
      env: { ...process.env, TERM: 'xterm', ...env },
    })
    const { promise, resolve } = Promise.withResolvers<number | null>()
    this.#ended = promise
    this.#child.stdout.on('data', (data: Buffer) => {
      this.#raw += data.toString()
      this.#wake()
    })
    this.#child.stdin.on('error', () => this.#wake()) // it ended while we were typing
    this.#child.once('close', code => {
      resolve(code)
      this.#wake()
    })
  }

  /** Everything so far, as one would read it. */
  get text() {
    return stripVTControlCharacters(this.#raw).replaceAll('\r', '')
  }

  type(text: string) {
    this.#child.stdin.write(text)
  }

  /** Waits until this is there, after what has been waited for before. */
  async reads(wanted: RegExp): Promise<void> {
    const until = performance.now() + PATIENCE_MS
    for (;;) {
      const found = wanted.exec(this.text.slice(this.#read))
      if (found) {
        this.#read += found.index + found[0].length
        return
      }
      const left = until - performance.now()
      if (left <= 0 || this.#child.exitCode !== null) throw new Error(`no ${wanted} in: ${this.text.slice(this.#read)}`)
      const timer = setTimeout(() => this.#wake(), left)
      await this.#more.promise
      clearTimeout(timer)
    }
  }

  /** The exit code, once it has ended by itself. */
  async end(): Promise<number | null> {
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), PATIENCE_MS)
    const code = await this.#ended
    clearTimeout(timer)
    return code
  }

  async [Symbol.asyncDispose]() {
    this.#child.kill('SIGKILL')
    await this.#ended
  }

  #wake() {
    this.#more.resolve()
    this.#more = Promise.withResolvers()
  }
}
