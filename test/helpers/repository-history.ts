// A machine whose disks are written, grow and get company, and its repository, into which it is pushed, and where others prune, collect, repack
// and read; all of them are killed at any request, or the store is. What each restore point must hold is known.

import { NotFound } from '../../src/base/errors.ts'
import type { Range } from '../../src/base/ranges.ts'
import { collect } from '../../src/repository/collector.ts'
import { SessionExpired } from '../../src/repository/faults.ts'
import { timeOfKey } from '../../src/repository/manifest.ts'
import { RepositoryReader } from '../../src/repository/reader.ts'
import type { Repository } from '../../src/repository/repository.ts'
import type { GetOptions, Target } from '../../src/repository/target.ts'
import { verify } from '../../src/repository/verify.ts'
import { PointDisk } from '../../src/restore/point-disk.ts'
import type { Fate } from './mortal-target.ts'
import { done, newRepository, restored } from './push-point.ts'
import { diskContent, generator, randomBytes } from './random-bytes.ts'
import { COLLECT, InThisProcess, open, perform, sealer, type Deed, type Doer, type Done } from './repository-deeds.ts'

const CHUNK = 65536

interface Disk {
  bytes: Buffer
  /** What was written since each checkpoint, as its bitmap has it. */
  readonly changes: Map<string, Range[]>
  /** Whether it says where its holes are. */
  isOpaque: boolean
}

type Content = ReadonlyMap<string, Buffer>

export interface HistoryOptions {
  readonly seed: number
  readonly passphrase?: string | undefined
  /** Who does it; by default this process, and dies only as far as the store can tell. */
  readonly doer?: Doer
  /** Whether they are processes that can die in the midst of a request, and are to do so often. */
  readonly isReal?: boolean
}

/** Says what is read. */
class Recorder implements Target {
  constructor(
    private readonly below: Target,
    private readonly reads: (key: string) => void,
  ) {}

  readonly location = 'recorded'
  put: Target['put'] = (...args) => this.below.put(...args)
  list: Target['list'] = (...args) => this.below.list(...args)
  delete: Target['delete'] = (...args) => this.below.delete(...args)
  get(key: string, options?: GetOptions) {
    this.reads(key)
    return this.below.get(key, options)
  }
  async [Symbol.asyncDispose]() {}
}

export class RepositoryHistory implements AsyncDisposable {
  readonly disks = new Map<string, Disk>()
  /** By key; those that are there, or may be. */
  readonly points = new Map<string, Content>()
  /** What each push was to keep, by its instant. */
  readonly #pushed = new Map<number, Content>()
  readonly told: string[] = []
  readonly #next: () => number
  #count = 0
  #reader: { readonly reader: RepositoryReader; readonly node: PointDisk; readonly bytes: Buffer } | undefined

  private constructor(
    private readonly target: Target,
    private readonly doer: Doer,
    private readonly options: HistoryOptions,
  ) {
    this.#next = generator(options.seed)
  }

  static async begin(target: Target, options: HistoryOptions) {
    const { passphrase, doer = new InThisProcess(target, passphrase) } = options
    await newRepository(target, { passphrase })
    const history = new RepositoryHistory(target, doer, options)
    history.#addDisk()
    return history
  }

  /** What goes wrong meanwhile is told with all that has happened. */
  async tell(work: () => Promise<void>) {
    try {
      await work()
    } catch (error) {
      const what = `seed ${this.options.seed}: ${(error as Error).message}\n${this.told.join('\n')}`
      throw new Error(what, { cause: error })
    }
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
    else if (choice < 17) await this.#attempt({ op: 'prune', last: 1 + (this.#next() % 4) })
    else if (choice < 19) await this.#attempt({ op: 'collect' })
    else await this.#attempt({ op: 'repack' })
    await this.#readOn()
    const keys = [...(await this.#there())]
    if (keys.length === 0 || choice % 3 > 0) return
    const key = keys[this.#next() % keys.length]!
    if (this.options.isReal && choice % 2 === 0) await this.#attempt({ op: 'restore', key })
    else await this.#restore(key)
  }

  /** Every restore point, and that nothing is damaged. Returns what each of those that are there must hold. */
  async checkAll(): Promise<ReadonlyMap<string, Content>> {
    const there = await this.#there()
    for (const key of there) await this.#restore(key)
    const { damagedPacks, damagedPoints } = await done(verify(await this.#open(), { level: 'deep', sealer }))
    if (damagedPacks.length + damagedPoints.length > 0) throw new Error(JSON.stringify({ damagedPacks, damagedPoints }))
    return new Map([...there].map(key => [key, this.points.get(key)!]))
  }

  /** All but the newest restore point go, and what only they needed is collected. What is there then that nobody reads who restores that one. */
  async shrink(): Promise<string[]> {
    await this.#endReader()
    const repository = await this.#open()
    await collect(repository, COLLECT) // the dead read nothing any more
    await perform(repository, { op: 'prune', last: 1 })
    while ((await collect(repository, COLLECT)).state !== 'nothing');
    const left = new Set((await Array.fromAsync(this.target.list(''))).map(({ key }) => key))
    const newest = [...(await this.#there())]
    if (newest.length > 1) throw new Error(`${newest.join(' and ')} are there after all but one were to go`)
    const reader = await open(new Recorder(this.target, key => left.delete(key)), this.options.passphrase)
    for (const key of newest) await this.#restore(key, reader)
    return [...left]
  }

  async [Symbol.asyncDispose]() {
    await this.#endReader()
  }

  // --- the machine ------------------------------------------------------------------------------------------------------------------

  #addDisk() {
    // One in six has two levels of tree, and is nearly empty; but where each push has to tell another process of it.
    const large = this.#next() % 6 === 0 && !this.options.isReal
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
    const disks = [...this.disks].map(([name, { bytes, changes, isOpaque }]) => ({
      name,
      bytes,
      isOpaque,
      checkpoint,
      changes: [...changes].reverse().map(([since, ranges]) => ({ since, ranges })),
    }))
    const time = Date.UTC(2026, 0, 1, this.#count)
    this.#pushed.set(time, content)
    const result = await this.#attempt({ op: 'push', time, disks })
    // Who was killed may have committed: then it is there, and whole. What it asked for last may even be done later.
    const made = (await this.#keys()).filter(key => timeOfKey(key)?.getTime() === time)
    if (made.length > 1 || (result && made[0] !== result.key))
      throw new Error(`a push has made ${made.join(' and ') || 'nothing'}`)
    if (!result) return
    for (const [name, disk] of this.disks) {
      this.told.push(`${name} by ${result.modes![name]}`)
      disk.changes.set(checkpoint, [])
      if (disk.changes.size > 3) disk.changes.delete(disk.changes.keys().next().value!)
    }
  }

  /** As a process of its own, which may be killed, or find the store away. Undefined where it did not come to its end. */
  async #attempt(deed: Deed): Promise<Done | undefined> {
    const outcome = await this.doer.do(deed, this.#fateOf(deed))
    this.told.push(`${deed.op}${'failed' in outcome ? `: ${outcome.failed}` : ''}`)
    return 'done' in outcome ? outcome.done : undefined
  }

  #fateOf({ op }: Deed): Fate | undefined {
    const { isReal = false } = this.options
    const at = this.#next() % (op === 'push' ? 60 : 80)
    const choice = this.#next() % 6
    if (choice < (isReal ? 4 : 2)) {
      const how = this.#next() % (isReal ? 5 : 2)
      return { at, dies: how === 0 ? 'before' : how === 1 ? 'after' : how }
    }
    return choice < (isReal ? 5 : 4) ? { at, awayFor: 1 + (this.#next() % 4) } : undefined
  }

  #open() {
    return open(this.target, this.options.passphrase)
  }

  async #keys() {
    const keys: string[] = []
    for await (const { key } of (await this.#open()).points()) keys.push(key)
    return keys
  }

  /** Those that are there now, all of which are known; the newest one is never pruned. */
  async #there(): Promise<ReadonlySet<string>> {
    const there = new Set(await this.#keys())
    for (const key of there) {
      const content = this.#pushed.get(timeOfKey(key)!.getTime())
      if (!content) throw new Error(`${key} is there, and nobody has made it`)
      this.points.set(key, content)
    }
    const newest = [...this.points.keys()].sort().at(-1)
    if (newest !== undefined && !there.has(newest)) throw new Error(`${newest} is gone, and is the newest one`)
    for (const key of this.points.keys()) if (!there.has(key)) this.points.delete(key)
    return there
  }

  async #restore(key: string, by?: Repository) {
    const repository = by ?? (await this.#open())
    for (const [disk, bytes] of this.points.get(key)!)
      if (!(await restored(repository, key, disk, { sealer })).equals(bytes))
        throw new Error(`${disk} of ${key} is not as it was`)
  }

  // --- somebody who reads for long --------------------------------------------------------------------------------------------------

  async #read() {
    await this.#endReader()
    const keys = [...(await this.#there())]
    if (keys.length === 0) return
    const key = keys[this.#next() % keys.length]!
    const reader = await RepositoryReader.begin(await this.#open(), [key], { beatMs: 0 })
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
