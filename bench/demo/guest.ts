// The demo's guest: writes to both disks all the time, the same number to one and then to the other, and remembers every write.
//
// It waits for each write before the next, so at any instant the disks hold a prefix of its journal, but for the one write under way. From
// the journal comes what a backup must hold, without asking the daemon.

import { open } from 'node:fs/promises'
import { NbdClient } from 'nbd-client-ts'
import { BLOCK, type DemoDisk } from './disks.ts'

interface Entry {
  readonly disk: number
  readonly offset: number
}

export class Guest implements AsyncDisposable {
  readonly #journal: Entry[] = []
  #running: Promise<void> | undefined
  #stopping = false

  private constructor(
    private readonly disks: readonly DemoDisk[],
    private readonly clients: readonly NbdClient[],
  ) {}

  static async connect(disks: readonly DemoDisk[], uri: (disk: string) => string) {
    return new Guest(disks, await Promise.all(disks.map(({ name }) => NbdClient.connect(uri(name)))))
  }

  /** How many writes have been answered. */
  get written() {
    return this.#journal.length
  }

  start() {
    this.#running = this.#write()
  }

  async #write() {
    for (let count = 0; !this.#stopping; count++) {
      for (const [disk, { blocks }] of this.disks.entries()) {
        const offset = blocks[(count * 7919) % blocks.length]! * BLOCK
        await this.clients[disk]!.write(offset, record(this.#journal.length))
        this.#journal.push({ disk, offset })
      }
    }
  }

  async [Symbol.asyncDispose]() {
    this.#stopping = true
    await this.#running
    await Promise.all(this.clients.map(client => client.close()))
  }

  /**
   * How many writes a backup holds that was begun when `before` had been answered and was there when `after` had: the last one of them
   * that any of the images shows, and all before it.
   */
  async writesIn(images: readonly string[], before: number, after: number) {
    let count = before
    for (const [disk, image] of images.entries()) {
      await using file = await open(image, 'r')
      const block = Buffer.alloc(BLOCK)
      for (let index = before; index <= after && index < this.#journal.length; index++) {
        const entry = this.#journal[index]!
        if (entry.disk !== disk) continue
        await file.read(block, 0, BLOCK, entry.offset)
        if (block.equals(record(index))) count = Math.max(count, index + 1)
      }
    }
    return count
  }

  /** Brings copies of the disks from `from` writes to `to` writes. */
  async replay(images: readonly string[], from: number, to: number) {
    for (const [disk, image] of images.entries()) {
      await using file = await open(image, 'r+')
      for (let index = from; index < to; index++) {
        const entry = this.#journal[index]!
        if (entry.disk === disk) await file.write(record(index), 0, BLOCK, entry.offset)
      }
    }
  }
}

/** A block like no other: its number, and noise made of it. */
function record(index: number) {
  const block = Buffer.allocUnsafe(BLOCK)
  let state = (index + 1) * 0x9e3779b1
  for (let at = 0; at < BLOCK; at += 4) {
    state = (Math.imul(state ^ (state >>> 15), 0x85ebca6b) + at) >>> 0
    block.writeUInt32LE(state, at)
  }
  block.write(`write ${index} `, 0)
  return block
}
