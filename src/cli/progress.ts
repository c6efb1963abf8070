// How far something has come, on the terminal's last line; nothing where standard error is no terminal, or one that cannot go back in a line.

import { formatShare } from './format.ts'

const EVERY_MS = 100
/** What takes less is not worth a line. */
const AFTER_MS = 500

interface Out {
  readonly isTTY?: boolean
  readonly columns?: number
  write(text: string): unknown
}

interface ProgressOptions {
  /** The answer comes meanwhile: where it is shown on the terminal, this is not. */
  readonly besideAnswer?: boolean
  readonly out?: Out
  readonly afterMs?: number
}

export class Progress implements Disposable {
  readonly #out: Out
  readonly #shows: boolean
  #next: number
  #shown = false

  constructor(
    private readonly what: string,
    private readonly total: number,
    { besideAnswer = false, out = process.stderr, afterMs = AFTER_MS }: ProgressOptions = {},
  ) {
    this.#out = out
    this.#shows = out.isTTY === true && process.env['TERM'] !== 'dumb' && !(besideAnswer && process.stdout.isTTY)
    this.#next = performance.now() + afterMs
  }

  /** `total`: where it becomes known on the way; `more` stands behind it. */
  at(done: number, total = this.total, more = ''): void {
    this.says(`${formatShare(done, total)}${more}`)
  }

  /** Where nobody knows how much there is. */
  says(words: string): void {
    if (!this.#shows || performance.now() < this.#next) return
    this.#next = performance.now() + EVERY_MS
    this.#shown = true
    // A line that goes on in the next one would stay there.
    const columns = (this.#out.columns || 80) - 1
    const told = `: ${words}`
    const text = `${shortened(this.what, columns - told.length)}${told}`.slice(0, columns)
    this.#out.write(`\r${text}\x1b[K`)
  }

  /** The line goes. */
  [Symbol.dispose]() {
    if (this.#shown) this.#out.write('\r\x1b[K')
  }
}

/** What a name ends with tells it from others as much as what it begins with. */
function shortened(name: string, length: number): string {
  if (name.length <= length) return name
  const left = Math.max(3, length) - 3
  return `${name.slice(0, Math.ceil(left / 2))}...${name.slice(name.length - Math.floor(left / 2))}`
}
