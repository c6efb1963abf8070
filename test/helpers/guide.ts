// A page of docs/ followed to the letter: its commands in one bash, in their order; the files that it shows; and what it says that one will see.
//
// A block of `sh` is run, with the block of `text` behind it as what comes of it. A block of any other language that begins with a comment
// which names a file (`# /etc/stillpoint/conf.d/web.yaml`) is that file.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { createServer, type AddressInfo, type Socket } from 'node:net'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { CliWorker } from './cli-worker.ts'
import { environment, WHOLE } from './stillpoint.ts'
import type { Ended } from './tools.ts'

const root = fileURLToPath(new URL('../../../', import.meta.url))

export interface Step {
  readonly language: string
  readonly text: string
  /** Of a block that is a file. */
  readonly file?: string
  /** What the page says comes of it. */
  readonly shown?: string
}

/** The blocks of a page of docs/. */
export async function stepsOf(page: string): Promise<Step[]> {
  const steps: Step[] = []
  const whole = await readFile(join(root, 'docs', page), 'utf8')
  for (const [, language, text] of whole.matchAll(/^```(\w+)\n([^]*?)^```$/gm)) {
    const last = steps.at(-1)
    if (language === 'text') steps[steps.length - 1] = { ...last!, shown: text! }
    else {
      const file = /^# (\S*[./]\S*)\n/.exec(text!)?.[1]
      steps.push({ language: language!, text: text!, ...(language !== 'sh' && file !== undefined && { file }) })
    }
  }
  return steps
}

/** One step takes moments, but for a machine that is very busy; these are for what hangs. */
const STEP_MS = 240_000
const END_MS = 60_000

/** Somebody who follows a page, in a shell that ends at the first command that fails. */
export class Follower implements AsyncDisposable {
  readonly #child
  readonly #ended: Promise<unknown>
  #said = ''
  #count = 0

  /** `prelude` is what the shell is told before. */
  constructor(folder: string, { env = {}, prelude = '' }: { env?: Record<string, string>; prelude?: string } = {}) {
    const script = [
      'exec 2>&1',
      'set -eo pipefail',
      `trap 'jobs=$(jobs -p); [ -z "$jobs" ] || kill $jobs; wait' EXIT`,
      prelude,
      'while IFS= read -r -d "" step; do eval "$step" < /dev/null; done',
    ]
    this.#child = spawn('bash', ['-c', script.join('\n')], {
      cwd: folder,
      env: { ...process.env, ...environment(env) },
      stdio: ['pipe', 'pipe', 'inherit'],
      detached: true, // the leader of a group, so that all that it has started can be ended
    })
    this.#child.stdout.setEncoding('utf8').on('data', (said: string) => (this.#said += said))
    // It has ended already, and what it said tells why.
    this.#child.stdin.on('error', error => (this.#said += `${error.message}\n`))
    this.#ended = once(this.#child, 'exit')
  }

  /** What it prints, on both of its outputs. @throws where a command fails */
  async run(commands: string): Promise<string> {
    const end = `<the end of step ${++this.#count}>\n`
    this.#said = ''
    const guard = setTimeout(() => this.#kill(), STEP_MS)
    this.#child.stdin.write(`${commands}\nprintf %s '${end}'\0`)
    while (!this.#said.includes(end)) {
      if (this.#hasEnded) {
        clearTimeout(guard)
        throw new Error(`it ended with ${this.#child.exitCode ?? this.#child.signalCode} at:\n${commands}\n${this.#said}`)
      }
      await Promise.race([once(this.#child.stdout, 'data'), this.#ended])
    }
    clearTimeout(guard)
    return this.#said.replace(end, '')
  }

  /** Ends what runs in the background, too. */
  async [Symbol.asyncDispose]() {
    const guard = setTimeout(() => this.#kill(), END_MS)
    this.#child.stdin.end()
    await this.#ended
    clearTimeout(guard)
  }

  get #hasEnded() {
    return this.#child.exitCode !== null || this.#child.signalCode !== null
  }

  #kill() {
    if (!this.#hasEnded) process.kill(-this.#child.pid!, 'SIGKILL')
  }
}

/**
 * `stillpoint` for such a shell at a tenth of the price: a function that has a thread of this process run it, in the shell's folder. What runs
 * until it is stopped (`stillpoint serve ... &`) is the program itself.
 */
export class StillpointFunction implements AsyncDisposable {
  readonly #worker: CliWorker
  readonly #server = createServer(socket => this.#serve(socket))
  #config: readonly string[]

  /** `config` is for the commands that have no daemon to ask, where it does not lie where they look. */
  constructor({ socket, config }: { socket: string; config?: string }) {
    this.#worker = new CliWorker({ STILLPOINT_SOCKET: socket })
    this.#config = config === undefined ? [] : ['--config', config]
  }

  /** What defines it. */
  async listen(): Promise<string> {
    this.#server.listen(0, '127.0.0.1')
    await once(this.#server, 'listening')
    const { port } = this.#server.address() as AddressInfo
    return `stillpoint() {
  local config=() call code length
  case $1 in
    repo|point|restore|serve) config=(${this.#config.map(word => `'${word}'`).join(' ')}) ;;
  esac
  case $1 in
    daemon|serve)
      set -- '${process.execPath}' '${WHOLE}' "$@" "\${config[@]}"
      [ $BASHPID = $$ ] || exec "$@"
      "$@"
      return ;;
  esac
  exec {call}<>/dev/tcp/127.0.0.1/${port}
  set -- "$PWD" "$@" "\${config[@]}"
  printf '%s\\0' $# "$@" >&$call
  read -r code length <&$call
  head -c "$length" <&$call
  cat <&$call >&2
  exec {call}>&-
  return "$code"
}`
  }

  /** By the same thread, without a shell. */
  run(...args: string[]): Promise<Ended> {
    return this.#worker.run(...args)
  }

  #serve(socket: Socket) {
    let said = ''
    socket.setEncoding('utf8').on('data', (data: string) => {
      said += data
      const [count, ...words] = said.split('\0')
      if (words.length <= Number(count)) return
      const [folder, ...args] = words.slice(0, -1)
      process.chdir(folder!)
      this.#worker.run(...args).then(
        ({ code, stdout, stderr }) => socket.end(`${code} ${Buffer.byteLength(stdout)}\n${stdout}${stderr}`),
        (error: unknown) => socket.destroy(error as Error),
      )
    })
  }

  async [Symbol.asyncDispose]() {
    process.chdir('/')
    this.#server.close()
    await this.#worker[Symbol.asyncDispose]()
  }
}

// --- what is seen -----------------------------------------------------------------------------------------------------------------

const UNITS = ['B', 'KiB', 'MiB', 'GiB']

/** Where it may differ from one day or machine to the next. */
const words = (line: string) =>
  line
    .replaceAll(/\d{8}T\d{6,9}Z(-[0-9a-f]{8})?/g, 'ID')
    .replaceAll(/\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?( ?[+-]\d\d:\d\d|Z)?/g, 'TIME')
    .replaceAll(/\b[0-9a-f]{8}\b/g, 'ID')
    .replaceAll(/\b\d+(\.\d+)? (ms|s|min)\b/g, 'DURATION')
    .replaceAll(/\b\d+ packs\b/g, 'PACKS')
    .replaceAll(/(\d+(\.\d+)?) (B|KiB|MiB|GiB)\b/g, (_, size: string, __, unit: string) => {
      const bytes = Number(size) * 1024 ** UNITS.indexOf(unit)
      // Compressed, a block of one kind more or less: of so little the half does not count.
      return bytes < 1024 ? 'SIZE' : `SIZE(2^${Math.round(Math.log2(bytes))})`
    })
    .replaceAll(/\s+/g, ' ')
    .trim()

/** The first line of the page that did not come, or undefined. `...` stands for anything, alone in a line for any lines. */
export function unlike(shown: string, came: string): string | undefined {
  const lines = came.split('\n').map(words).filter(Boolean)
  let at = 0
  let any = false
  for (const line of shown.split('\n')) {
    const wanted = words(line)
    if (wanted === '') continue
    if (wanted === '...') {
      any = true
      continue
    }
    const pattern = new RegExp(
      `^${wanted
        .split('...')
        .map(part => RegExp.escape(part))
        .join('.*')}$`,
    )
    const found = lines.findIndex((came, index) => (any ? index >= at : index === at) && pattern.test(came))
    if (found < 0) return line
    at = found + 1
    any = false
  }
  return any || at === lines.length ? undefined : '(that is all)'
}

export interface Circumstances {
  /** Paths that begin so lie in the folder. */
  readonly mapped?: readonly string[]
  /** Other words of the page, and what stands for them. */
  readonly replaced?: Readonly<Record<string, string>>
  /** What is done in the place of a block. */
  readonly instead?: Readonly<Record<string, () => Promise<void>>>
}

/** Follows a page to its end. What it returns has come otherwise than the page says. */
export async function follow(steps: readonly Step[], follower: Follower, folder: string, circumstances: Circumstances = {}) {
  const { mapped = [], replaced = {}, instead = {} } = circumstances
  const places = mapped.length === 0 ? /(?!)/g : new RegExp(`(?<![\\w.\\-/])(${mapped.join('|')})\\b`, 'g')
  const meant = (text: string) =>
    Object.entries(replaced)
      .reduce((said, [of, by]) => said.replaceAll(of, by), text)
      .replaceAll(places, `${folder}$1`)
  const wrong: string[] = []
  for (const { language, text, file, shown } of steps) {
    if (file !== undefined) {
      const path = meant(file)
      await mkdir(dirname(path), { recursive: true })
      await writeFile(path, meant(text))
    }
    if (language !== 'sh') continue
    const other = instead[text.trim()]
    if (other) {
      await other()
      continue
    }
    const came = (await follower.run(meant(text))).replaceAll(folder, mapped.length > 0 ? '' : '/home/you/first')
    const line = shown === undefined ? undefined : unlike(shown, came)
    if (line !== undefined) wrong.push(`${line}\n  is not what came of\n${text}${came}`)
  }
  return wrong
}
