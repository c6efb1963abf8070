// A machine whose disks are written, grow and get company, and its repository, into which it is pushed, and where others prune, collect, repack
// and read; all of them are killed at any request, or the store is. What each restore point must hold is known.

import { NotFound } from '../../src/base/errors.ts'
import type { Range } from '../../src/base/ranges.ts'
import { collect } from '../../src/repository/collector.ts'
import { SessionExpired } from '../../src/repository/faults.ts'
import { prune } from '../../src/repository/prune.ts'
import { RepositoryReader } from '../../src/repository/reader.ts'
import { repack } from '../../src/repository/repack.ts'
import { Repository } from '../../src/repository/repository.ts'
import { Unavailable, type Target } from '../../src/repository/target.ts'
import { verify } from '../../src/repository/verify.ts'
import { PointDisk } from '../../src/restore/point-disk.ts'
import { MortalTarget } from './mortal-target.ts'
import { bitmapOf, done, newRepository, opaque, pushDisks, restored, sealer, sourceOf } from './push-point.ts'
import { diskContent, generator, randomBytes } from './random-bytes.ts'

const CHUNK = 65536

interface Disk {
  bytes: Buffer
  /** What was written since each checkpoint, as its bitmap has it. */
  readonly changes: Map<string, Range[]>
  /** Whether it says where its holes are. */
  isOpaque: boolean
}

type Content = ReadonlyMap<string, Buffer>

export class RepositoryHistory implements AsyncDisposable {
  readonly disks = new Map<string, Disk>()
  /** By key; those that are there, or may be. */
  readonly points = new Map<string, Content>()
  readonly told: string[] = []
  readonly #next: () => number
  #count = 0
  #reader: { readonly reader: RepositoryReader; readonly node: PointDisk; readonly bytes: Buffer } | undefined

  private constructor(
    private readonly target: Target,
    private readonly passphrase: string | undefined,
    seed: number,
  ) {
    this.#next = generator(seed)
  }

  static async begin(target: Target, seed: number, passphrase?: string) {
    await newRepository(target, { passphrase })
    const history = new RepositoryHistory(target, passphrase, seed)
    history.#addDisk()
    return history
  }

  /** Something happens; and what can be looked at cheaply afterwards is. */
  async step() {
    const choice = this.#next() % 20
    if (choice < 6) this.#write()
    else if (choice === 6) this.#grow()
    else if (choice === 7 && this.disks.size < 3) this.#addDisk()
    else if (choice === 8) this.#loseBitmaps()
    else if (choice < 14) await this.#push()
    else if (choice === 14) await this.#read()
    else if (choice < 17) await this.#attempt('prune', repository => prune(repository, 'vm', { last: 1 + (this.#next() % 4) }))
    else if (choice < 19) await this.#attempt('collect', repository => collect(repository, { graceMs: 0, staleMs: 0, pollMs: 1 }))
    else
      await this.#attempt('repack', repository =>
        repack(repository, { budget: Infinity, waste: 0.2, beatMs: 0, packSize: 1 << 19 }),
      )
    await this.#readOn()
    const keys = [...(await this.#there())]
    if (keys.length > 0 && choice % 3 === 0) await this.#restore(keys[this.#next() % keys.length]!)
  }

  /** Every restore point, and that nothing is damaged. Returns what each of those that are there must hold. */
  async checkAll(): Promise<ReadonlyMap<string, Content>> {
    const there = await this.#there()
    for (const key of there) await this.#restore(key)
    const { damagedPacks, damagedPoints } = await done(verify(await this.#open(this.target), { level: 'deep', sealer }))
    if (damagedPacks.length + damagedPoints.length > 0) throw new Error(JSON.stringify({ damagedPacks, damagedPoints }))
    return new Map([...there].map(key => [key, this.points.get(key)!]))
  }

  async [Symbol.asyncDispose]() {
    await this.#endReader()
  }

  // --- the machine ------------------------------------------------------------------------------------------------------------------

  #addDisk() {
    // One in six has two levels of tree, and is nearly empty.
    const large = this.#next() % 6 === 0
    const size = (large ? 258 : 4 + (this.#next() % 12)) * CHUNK + (this.#next() % 3) * 512
    const bytes = large ? Buffer.alloc(size) : diskContent(size, this.#next())
    this.disks.set(`d${this.disks.size}`, { bytes, changes: new Map(), isOpaque: this.#next() % 2 === 0 })
    this.told.push(`disk of ${size} bytes`)
  }

  #anyDisk() {
    return [...this.disks.values()][this.#next() % this.disks.size]!
  }

  #write() {
    for (let count = 1 + (this.#next() % 4); count > 0; count--) {
      const disk = this.#anyDisk()
      const length = 1 + (this.#next() % (this.#next() % 3 === 0 ? 3 * CHUNK : 5000))
      const offset = this.#next() % (disk.bytes.length - length + 1)
      const kind = this.#next() % 4
      if (kind === 0) disk.bytes.fill(0, offset, offset + length)
      else if (kind === 1)
        disk.bytes.copy(disk.bytes, offset, 0, Math.min(length, disk.bytes.length - offset)) // what is there already
      else disk.bytes.set(randomBytes(length, this.#next()), offset)
      for (const ranges of disk.changes.values()) ranges.push({ offset, length })
    }
  }

  #grow() {
    const disk = this.#anyDisk()
    const more = 512 * (1 + (this.#next() % 400))
    const offset = disk.bytes.length
    disk.bytes = Buffer.concat([disk.bytes, this.#next() % 2 === 0 ? Buffer.alloc(more) : randomBytes(more, this.#next())])
    for (const ranges of disk.changes.values()) ranges.push({ offset, length: more })
    this.told.push(`grown to ${disk.bytes.length}`)
  }

  #loseBitmaps() {
    this.#anyDisk().changes.clear()
    this.told.push('bitmaps lost')
  }

  // --- the repository ---------------------------------------------------------------------------------------------------------------

  async #push() {
    const checkpoint = `c${++this.#count}`
    const content = new Map([...this.disks].map(([name, { bytes }]) => [name, Buffer.from(bytes)]))
    const pushed = [...this.disks].map(([name, { bytes, changes, isOpaque }]) => ({
      name,
      source: (isOpaque ? opaque : sourceOf)(bytes),
      checkpoint,
      changes:
        changes.size > 0
          ? [...changes].reverse().map(([since, ranges]) => ({ since, bitmap: bitmapOf(ranges) }))
          : { missing: 'it was lost' },
    }))
    const before = await this.#there()
    const result = await this.#attempt('push', repository => pushDisks(repository, pushed, { packSize: 1 << 19 }))
    // Who was killed may have committed: then it is there, and whole.
    const after = await this.#keys()
    const made = after.filter(key => !before.has(key))
    if (made.length > 1 || (result && made[0] !== result.key))
      throw new Error(`a push has made ${made.join(' and ') || 'nothing'}`)
    if (made[0] !== undefined) this.points.set(made[0], content)
    if (!result) return
    for (const [name, disk] of this.disks) {
      const { mode } = result.manifest.disks.find(disk => disk.name === name)!.read
      this.told.push(`${name} by ${mode}`)
      disk.changes.set(checkpoint, [])
      if (disk.changes.size > 3) disk.changes.delete(disk.changes.keys().next().value!)
    }
  }

  /** As a process of its own, which may be killed, or find the store away. Undefined where it did not come to its end. */
  async #attempt<Result>(what: string, work: (repository: Repository) => Promise<Result>): Promise<Result | undefined> {
    const mortal = new MortalTarget(this.target)
    const fate = this.#next() % 3
    const at = this.#next() % (what === 'push' ? 60 : 80)
    if (fate === 0) Object.assign(mortal, { dieAt: at, diesAfter: this.#next() % 2 === 0 })
    if (fate === 1) Object.assign(mortal, { awayAt: at, awayFor: 1 + (this.#next() % 4) })
    try {
      const result = await work(await this.#open(mortal))
      this.told.push(`${what}${mortal.isDead ? ', killed' : ''}`)
      return mortal.isDead ? undefined : result
    } catch (error) {
      // A process that was killed says nothing; whatever is thrown here in its stead is not its word.
      if (!mortal.isDead && !(error instanceof Unavailable)) throw error
      this.told.push(`${what} at request ${at}: ${(error as Error).message}`)
      return undefined
    }
  }

  #open(target: Target) {
    return Repository.open(target, this.passphrase === undefined ? {} : { passphrase: this.passphrase })
  }

  async #keys() {
    const keys: string[] = []
    for await (const { key } of (await this.#open(this.target)).points()) keys.push(key)
    return keys
  }

  /** Those that are there now, all of which are known; the newest one is never pruned. */
  async #there(): Promise<ReadonlySet<string>> {
    const there = new Set(await this.#keys())
    for (const key of there) if (!this.points.has(key)) throw new Error(`${key} is there, and nobody has made it`)
    const newest = [...this.points.keys()].sort().at(-1)
    if (newest !== undefined && !there.has(newest)) throw new Error(`${newest} is gone, and is the newest one`)
    for (const key of this.points.keys()) if (!there.has(key)) this.points.delete(key)
    return there
  }

  async #restore(key: string) {
    const repository = await this.#open(this.target)
    for (const [disk, bytes] of this.points.get(key)!)
      if (!(await restored(repository, key, disk)).equals(bytes)) throw new Error(`${disk} of ${key} is not as it was`)
  }

  // --- somebody who reads for long --------------------------------------------------------------------------------------------------

  async #read() {
    await this.#endReader()
    const keys = [...(await this.#there())]
    if (keys.length === 0) return
    const key = keys[this.#next() % keys.length]!
    const reader = await RepositoryReader.begin(await this.#open(this.target), [key], { beatMs: 0 })
    const [disk] = reader.points[0]!.manifest.disks
    this.#reader = {
      reader,
      node: new PointDisk({ reader, disk: disk!, sealer, cacheBytes: 0 }),
      bytes: this.points.get(key)!.get(disk!.name)!,
    }
    this.told.push(`reads ${key}`)
  }

  /** What it reads is right, or it hears that it was taken for dead and why that is the end. */
  async #readOn() {
    if (!this.#reader) return
    const { node, bytes } = this.#reader
    const length = 1 + (this.#next() % Math.min(bytes.length, 5 * CHUNK))
    const offset = this.#next() % (bytes.length - length + 1)
    const into = Buffer.alloc(length)
    try {
      await node.read(offset, into)
    } catch (error) {
      if (!(error instanceof SessionExpired) || !(error.cause instanceof NotFound)) throw error
      this.told.push('the reader ended')
      return await this.#endReader()
    }
    if (!into.equals(bytes.subarray(offset, offset + length))) throw new Error('the reader has read what was never there')
  }

  async #endReader() {
    const { node, reader } = this.#reader ?? {}
    this.#reader = undefined
    await node?.[Symbol.asyncDispose]()
    await reader?.[Symbol.asyncDispose]()
  }
}
