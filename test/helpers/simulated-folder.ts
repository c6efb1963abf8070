// A folder of activity logs on a disk that loses its power, on one timeline with the disk that an image is on.

import type { LogFile, LogFolder } from '../../src/bitmaps/activity-log.ts'
import { generator } from './random-bytes.ts'
import { SimulatedDisk } from './simulated-disk.ts'

interface Entry {
  readonly disk: SimulatedDisk
  /** The name is there for certain, perhaps, or perhaps still. */
  state: 'there' | 'coming' | 'going'
}

export class SimulatedFolder implements LogFolder {
  readonly smallestRegion = 8192
  readonly #files = new Map<string, Entry>()
  /** Called before each request that changes something, which may then never be done. */
  onChange: () => void = () => undefined
  /** Thrown instead of doing what would change something. */
  failure: Error | undefined

  constructor(files: ReadonlyMap<string, Buffer> = new Map()) {
    for (const [id, bytes] of files) this.#files.set(id, { disk: SimulatedDisk.holding(bytes), state: 'there' })
  }

  async create(id: string, content: Buffer): Promise<LogFile> {
    if (this.failure) throw this.failure
    const disk = new SimulatedDisk()
    disk.onChange = () => this.onChange()
    const entry: Entry = { disk, state: 'coming' }
    this.#files.set(id, entry)
    await disk.resize(content.length)
    await disk.write(0, content)
    await disk.flush()
    entry.state = 'there'
    return {
      write: async (offset, bytes) => {
        if (this.failure) throw this.failure
        await disk.write(offset, bytes)
      },
      sync: async () => {
        if (this.failure) throw this.failure
        await disk.flush()
      },
      [Symbol.asyncDispose]: async () => {},
    }
  }

  async read(id: string) {
    const entry = this.#files.get(id)
    if (!entry) return undefined
    const bytes = Buffer.alloc(entry.disk.size)
    if (bytes.length > 0) await entry.disk.read(0, bytes)
    return bytes
  }

  async remove(id: string) {
    const entry = this.#files.get(id)
    if (!entry) return
    this.onChange()
    entry.state = 'going'
  }

  get names() {
    return [...this.#files].flatMap(([id, { state }]) => (state === 'there' ? [id] : []))
  }

  /** What may be there when the power is back. */
  afterCrash(seed: number): Map<string, Buffer> {
    const next = generator(seed)
    const left = new Map<string, Buffer>()
    for (const [id, { disk, state }] of this.#files)
      if (state === 'there' || next() % 2 === 0) left.set(id, disk.afterCrash(next()))
    return left
  }
}
