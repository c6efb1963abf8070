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

  at(done: number): void {
    if (!this.#shows || performance.now() < this.#next) return
    this.#next = performance.now() + EVERY_MS
    this.#shown = true
    process.stderr.write(`\r${this.what}: ${formatShare(done, this.total)}\x1b[K`)
  }

  /** The line goes. */
  [Symbol.dispose]() {
    if (this.#shown) process.stderr.write('\r\x1b[K')
  }
}
