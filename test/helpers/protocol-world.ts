// A world in which several writers, a collector and a reader work on one store, one request at a time, in any order that the chooser
// likes, and in which any of them may be stopped for ever or for a long while at any request.
//
// The people in it run the product's own code. The choices come from a list of numbers, and nothing else is left to chance: while a world
// exists, ids come from its seed, the time is its own, and who sleeps is woken by it. So a history can be repeated.

import crypto, { hash } from 'node:crypto'
import { syncBuiltinESMExports } from 'node:module'
import timers from 'node:timers/promises'
import { BlobType, HEADER, sealBlob, TAG } from '../../src/repository/blob.ts'
import { collect, type CollectStep } from '../../src/repository/collector.ts'
import { Damaged } from '../../src/repository/faults.ts'
import { NodeReader, PackSessions } from '../../src/repository/node-reader.ts'
import { forget } from '../../src/repository/points.ts'
import { RepositoryReader } from '../../src/repository/reader.ts'
import { loadIndex } from '../../src/repository/repository-index.ts'
import { repack } from '../../src/repository/repack.ts'
import { Repository, type Point } from '../../src/repository/repository.ts'
import { Marker } from '../../src/repository/mark.ts'
import { encodeNode, FAN_OUT } from '../../src/repository/tree-node.ts'
import { walkChunks } from '../../src/repository/walk.ts'
import { RepositoryWriter } from '../../src/repository/writer.ts'
import { MemoryStore, MemoryTarget, type TargetRequest } from './memory-target.ts'
import { NotThere } from '../../src/repository/target.ts'
import { packKey } from '../../src/repository/pack.ts'
import { uuidOf } from '../../src/repository/uuid.ts'
import { generator } from './random-bytes.ts'

/** What is taken out of the protocol, to see that the world notices. */
export type Fence =
  CollectStep | 'pin epoch' | 'avoid condemned' | 'avoid in parent' | 'swap commit' | 'tombstone' | 'look after pin'

interface Waiting {
  readonly who: string
  readonly request: TargetRequest
  readonly go: () => void
}

const CHUNK = 65536

/** One person: its requests wait until the world lets them through. */
class Person {
  ended = false
  /** No request of it is ever answered again. */
  dead = false

  constructor(
    readonly name: string,
    readonly target: MemoryTarget,
  ) {}
}

export class World implements Disposable {
  readonly store = new MemoryStore()
  readonly #waiting: Waiting[] = []
  readonly #people: Person[] = []
  readonly history: string[] = []
  failure: Error | undefined
  #time = Date.UTC(2026, 0, 1)
  #counter = 0

  /** Who sleeps: woken when the world goes on. */
  #sleepers: (() => void)[] = []
  readonly #real = { randomUUID: crypto.randomUUID, sleep: timers.setTimeout, now: Date.now }

  constructor(
    seed: number,
    readonly without: ReadonlySet<Fence> = new Set(),
  ) {
    this.store.now = () => new Date(this.#time)
    const next = generator(seed)
    const sleep = (_ms?: number, value?: unknown) => new Promise(resolve => this.#sleepers.push(() => resolve(value)))
    crypto.randomUUID = () => uuidOf(Buffer.from(Array.from({ length: 16 }, () => next() >> 8))) as crypto.UUID
    timers.setTimeout = sleep as typeof timers.setTimeout
    Date.now = () => this.#time
    syncBuiltinESMExports()
  }

  [Symbol.dispose]() {
    crypto.randomUUID = this.#real.randomUUID
    timers.setTimeout = this.#real.sleep
    Date.now = this.#real.now
    syncBuiltinESMExports()
  }

  /** Time passes, for the store's clock. */
  wait(ms: number) {
    this.#time += ms
  }

  person(name: string): Person {
    const person = new Person(name, new MemoryTarget(this.store))
    person.target.before = request => this.#ask(person, request)
    this.#people.push(person)
    return person
  }

  /** Starts somebody's work. A failure that we foresee ends it; others are the test's. */
  start(name: string, work: (person: Person, repository: Repository) => Promise<void>) {
    const person = this.person(name)
    const run = async () => {
      const repository = await Repository.open(person.target)
      await work(person, repository)
    }
    run()
      .catch((error: unknown) => {
        // What the collector says when it finds a restore point without its chunks is what we look for.
        if (error instanceof Damaged) this.failure ??= error
        this.history.push(`${name} ended: ${(error as Error).message}`)
      })
      .finally(() => (person.ended = true))
    return person
  }

  /** Lets requests through, one after another, by the numbers; then all the rest. */
  async run(choices: readonly number[]) {
    for (const choice of choices) {
      await this.#settle()
      if (this.failure) return
      if (this.#sleepers.length > 0) {
        this.#wake()
        await this.#settle()
      }
      if (this.#waiting.length === 0 && this.#people.every(({ ended, dead }) => ended || dead)) break
      this.#take(choice)
    }
    for (let idle = 0; idle < 20;) {
      await this.#settle()
      if (this.#waiting.length > 0) {
        this.#take(0)
        idle = 0
      } else {
        if (this.#people.every(({ ended, dead }) => ended || dead)) return
        // Somebody sleeps: those that are silent are taken for dead in the end.
        this.wait(10 * 60_000)
        this.#wake()
        idle++
      }
    }
  }

  /** Lets one person go on until it is about to make the request, or has ended, or only waits for others. */
  async until(name: string, matches: (request: TargetRequest) => boolean = () => false) {
    for (let idle = 0; idle < 10;) {
      await this.#settle()
      const index = this.#waiting.findIndex(({ who }) => who === name)
      if (index < 0) {
        if (this.#people.find(person => person.name === name)!.ended) return
        this.#wake()
        idle++
        continue
      }
      const { request, go } = this.#waiting[index]!
      if (matches(request)) return
      this.#waiting.splice(index, 1)
      this.history.push(`${name}: ${request.op} ${request.key.slice(0, 60)}`)
      if (request.op === 'list' && request.key.startsWith('gc/clock'))
        idle += 0.5 // a collector that looks again and again
      else if (request.op === 'put' && !request.key.startsWith('gc/clock')) idle = 0
      go()
    }
  }

  /** The invariant: every restore point that is there, or that a living reader has, has all that it needs. */
  async check() {
    const target = new MemoryTarget(this.store)
    const repository = await Repository.open(target)
    const { index } = await loadIndex(target, repository.id)
    const nodes = new NodeReader(target, repository.keys, index, new PackSessions(target, repository.keys, repository.id))
    const marker = new Marker(index, nodes)
    for await (const { key, manifest } of repository.points()) {
      await marker.mark(manifest, key)
    }
    for (const pack of marker.used.keys())
      if (!this.store.objects.has(pack)) throw new Damaged(`a restore point needs ${pack}, which is gone`)
  }

  /** A backup of some chunks, named by letters; it shares what it can, as a push does. */
  async backup({ name, target }: Person, repository: Repository, letters: string, { fromParent = false } = {}) {
    let parent: Point | undefined
    await using writer = await this.#beginWriter(repository, async () => {
      const [key] = fromParent ? (await repository.pointKeys('vm')).slice(-1) : []
      parent = key === undefined ? undefined : await repository.findPoint(key)
    })
    const places: (Buffer | undefined)[] = Array.from({ length: FAN_OUT }, () => undefined)
    if (parent)
      for await (const { chunk, id } of walkChunks(writer.nodes, parent.manifest.disks[0]!)) {
        // A chunk of the parent is shared unread, unless it is not to be relied on.
        if (this.without.has('avoid in parent') || writer.index.data.usable(id)) places[chunk] = id
        else places[chunk] = await this.#addChunk(writer, repository, chunkOf(this.#letterOf(repository, id)))
      }
    for (const letter of letters) places[letter.charCodeAt(0) - 97] = await this.#addChunk(writer, repository, chunkOf(letter))
    const size = FAN_OUT * CHUNK
    const root = await writer.addMeta(encodeNode({ level: 0, places }), BlobType.node)
    if (this.without.has('swap commit')) await this.#overwriteSession(writer, target)
    const time = new Date(Date.UTC(2026, 0, 1) + ++this.#counter * 1000).toISOString()
    const disk = {
      name: 'd',
      size,
      chunkSize: CHUNK,
      root: root.toString('hex'),
      read: { mode: 'full', why: name },
      dirty: 0,
      new: 0,
      stored: 0,
    } as const
    await writer.commit({
      machine: 'vm',
      time,
      consistency: 'crash',
      complete: true,
      parent: null,
      disks: [disk],
      attachments: [],
    })
  }

  async forgetOldest(repository: Repository, keep: number) {
    const keys: string[] = []
    for await (const { key } of repository.points('vm')) keys.push(key)
    for (const key of keys.slice(0, Math.max(0, keys.length - keep))) {
      if (this.without.has('tombstone')) await repository.target.delete([key])
      else await forget(repository, key)
    }
  }

  collect(repository: Repository) {
    return collect(repository, {
      graceMs: 0,
      staleMs: 3_600_000,
      pollMs: 0,
      patienceMs: Infinity,
      without: this.without as ReadonlySet<CollectStep>,
    })
  }

  repack(repository: Repository) {
    return repack(repository, { budget: Infinity, waste: 0, beatMs: 0, packSize: 1 << 17 })
  }

  /** Reads the newest restore point slowly; whatever it needs must be there as long as its session is. */
  async read(repository: Repository) {
    const [key] = (await repository.pointKeys('vm')).slice(-1)
    if (key === undefined) return
    await using reader = this.without.has('look after pin')
      ? await this.#beginReaderBlind(repository, key)
      : await RepositoryReader.begin(repository, [key], { beatMs: 0 })
    for await (const { id } of walkChunks(reader.nodes, reader.points[0]!.manifest.disks[0]!)) {
      let place = reader.index.data.find(id)
      if (place && !(await this.#there(repository, packKey(place.pack.kind, place.pack.name)))) {
        // As those do who fetch chunks. SessionExpired where it was taken for dead, and what it reads forgotten.
        await reader.index.moved(place.pack, new Damaged('it is gone', { cause: new NotThere('') }))
        place = reader.index.data.find(id)
        if (place && !(await this.#there(repository, packKey(place.pack.kind, place.pack.name)))) place = undefined
      }
      if (!place) throw new Damaged('a reader has lost what it reads')
    }
  }

  async #there({ target }: Repository, key: string) {
    for await (const entry of target.list(key)) return entry.key === key
    return false
  }

  async #beginReaderBlind(repository: Repository, key: string) {
    const point = await repository.point(key)
    const blind = Object.create(repository, { point: { value: async () => point } }) as Repository
    return RepositoryReader.begin(blind, [key], { beatMs: 0 })
  }

  async #beginWriter(repository: Repository, look: () => Promise<void>) {
    const writer = await RepositoryWriter.begin(this.without.has('pin epoch') ? forgetful(repository) : repository, {
      digest,
      look,
      beatMs: 0,
      packSize: 1 << 17,
    })
    if (this.without.has('avoid condemned'))
      for (const { packs } of [writer.index.data, writer.index.meta]) for (const pack of packs) pack.avoid = false
    return writer
  }

  async #addChunk(writer: RepositoryWriter, repository: Repository, plain: Buffer) {
    const id = repository.keys.idOf(plain)
    if (writer.index.data.usable(id)) return id
    const into = Buffer.alloc(HEADER + plain.length + TAG)
    const length = sealBlob(plain, { type: BlobType.data, id, counter: writer.nextCounter(), key: writer.key }, into)
    await writer.addChunk(into.subarray(0, length))
    return id
  }

  #letterOf(repository: Repository, id: Buffer) {
    return ['a', 'b', 'c', 'd', 'e', 'f'].find(letter => repository.keys.idOf(chunkOf(letter)).equals(id))!
  }

  /** As if the commit were a plain write: whatever the record has become, it is the writer's again. */
  async #overwriteSession(writer: RepositoryWriter, target: MemoryTarget) {
    await writer.flush()
    const put = target.put.bind(target)
    target.put = (key, body, options) => put(key, body, key.startsWith('sessions/') ? { signal: options?.signal } : options)
  }

  #ask(person: Person, request: TargetRequest) {
    return new Promise<void>(resolve => {
      if (person.dead) return
      this.#waiting.push({ who: person.name, request, go: resolve })
    })
  }

  /** 0 to 1999: the request of somebody; from 2000 on: somebody dies, or a long time passes. */
  #take(choice: number) {
    if (choice >= 2000 && choice % 2 === 0) this.wait(45 * 60_000)
    if (this.#waiting.length === 0) return
    if (choice >= 2100) {
      const [victim] = this.#waiting.splice(choice % this.#waiting.length, 1)
      this.#people.find(({ name }) => name === victim!.who)!.dead = true
      this.history.push(`${victim!.who} dies at ${victim!.request.op} ${victim!.request.key}`)
      return
    }
    const [chosen] = this.#waiting.splice(choice % this.#waiting.length, 1)
    this.history.push(`${chosen!.who}: ${chosen!.request.op} ${chosen!.request.key.slice(0, 60)}`)
    chosen!.go()
  }

  #wake() {
    for (const wake of this.#sleepers.splice(0)) wake()
  }

  /** Until everybody waits for the store, sleeps or has ended. */
  async #settle() {
    for (let turn = 0; turn < 3; turn++) await new Promise(resolve => setImmediate(resolve))
  }
}

const digest = async (bytes: Uint8Array) => hash('sha256', bytes)

const chunkOf = (letter: string) => Buffer.alloc(CHUNK, letter)

/** A repository whose state seems not to move once it was read: the writer's second look tells nothing. */
function forgetful(repository: Repository): Repository {
  const { target } = repository
  let state: ReturnType<typeof target.get> | undefined
  const stale: Repository['target'] = {
    location: target.location,
    put: (...args) => target.put(...args),
    get: (key, options) => (key === 'gc/state' ? (state ??= target.get(key, options)) : target.get(key, options)),
    list: (...args) => target.list(...args),
    delete: (...args) => target.delete(...args),
    [Symbol.asyncDispose]: async () => {},
  }
  return Object.create(repository, { target: { value: stale } }) as Repository
}
