// How far work on a disk has come: as qemu-img shows it with -p, else on a terminal's last line.

import { Progress } from '../progress.ts'

export class DiskProgress implements Disposable {
  readonly #onTerminal: Progress | undefined
  #said = -1

  constructor(
    what: string,
    private readonly total: number,
    private readonly asked: boolean,
  ) {
    if (!asked) this.#onTerminal = new Progress(what, total)
    else this.at(0)
  }

  at(done: number) {
    this.#onTerminal?.at(done)
    if (!this.asked) return
    const percent = this.total === 0 ? 0 : Math.floor((Math.min(done, this.total) / this.total) * 100)
    if (percent === this.#said) return
    this.#said = percent
    process.stdout.write(`    (${percent.toFixed(2)}/100%)\r`)
  }

  [Symbol.dispose]() {
    this.#onTerminal?.[Symbol.dispose]()
    if (!this.asked) return
    this.at(this.total)
    process.stdout.write('\n')
  }
}
