// How far something has come, on the terminal's last line; nothing where standard error is no terminal.

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
    this.#shows = out.isTTY === true && !(besideAnswer && process.stdout.isTTY)
    this.#next = performance.now() + afterMs
  }

  /** `total`: where it becomes known on the way; `more` stands behind it. */
  at(done: number, total = this.total, more = ''): void {
    if (!this.#shows || performance.now() < this.#next) return
    this.#next = performance.now() + EVERY_MS
    this.#shown = true
    // A line that goes on in the next one would stay there.
    const text = `${this.what}: ${formatShare(done, total)}${more}`.slice(0, (this.#out.columns || 80) - 1)
    this.#out.write(`\r${text}\x1b[K`)
  }

  /** The line goes. */
  [Symbol.dispose]() {
    if (this.#shown) this.#out.write('\r\x1b[K')
  }
}
