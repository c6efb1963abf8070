// How far something has come, on the terminal's last line; nothing where standard error is no terminal, or where the answer is shown there.

import { formatShare } from './format.ts'

const EVERY_MS = 100
/** What takes less is not worth a line. */
const AFTER_MS = 500

export class Progress implements Disposable {
  readonly #shows = process.stderr.isTTY && !process.stdout.isTTY
  #next = performance.now() + AFTER_MS
  #shown = false

  constructor(
    private readonly what: string,
    private readonly total: number,
  ) {}

  /** `total`: where it becomes known on the way; `more` stands behind it. */
  at(done: number, total = this.total, more = ''): void {
    if (!this.#shows || performance.now() < this.#next) return
    this.#next = performance.now() + EVERY_MS
    this.#shown = true
    process.stderr.write(`\r${this.what}: ${formatShare(done, total)}${more}\x1b[K`)
  }

  /** The line goes. */
  [Symbol.dispose]() {
    if (this.#shown) process.stderr.write('\r\x1b[K')
  }
}
