// A repository that is open: what it is, its keys, and its restore points.

import { NotFound } from '../base/errors.ts'
import { leaveDamaged, listSessions } from './commit.ts'
import { find } from './conditional.ts'
import { Damaged } from './faults.ts'
import type { RepositoryKeys } from './keys.ts'
import { decodeManifest, isTombstone, machinePrefix, pointKey, POINTS, timeOfKey, type Manifest } from './manifest.ts'
import { thisHost, type Host } from './owner.ts'
import { openKeys, readRepositoryFile, type RepositoryFile } from './repository-file.ts'
import type { Target } from './target.ts'

export interface Point {
  /** points/<machine>/<time>-<id>, by which it is known everywhere. */
  readonly key: string
  readonly manifest: Manifest
  /** Its object's bytes. */
  readonly body: Buffer
}

export interface OpenOptions {
  readonly passphrase?: string | undefined
  readonly me?: Host
  readonly warn?: (message: string) => void
  readonly signal?: AbortSignal
}

export class Repository {
  private constructor(
    readonly target: Target,
    readonly file: RepositoryFile,
    readonly keys: RepositoryKeys,
    /** Who writes, where only one host may. */
    readonly me: Host,
    /** Told what somebody should know and nothing fails for. */
    readonly warn: (message: string) => void,
  ) {}

  /** NoRepository, WrongKey, UnknownFormat or Damaged when it cannot be. The target stays the caller's. */
  static async open(target: Target, options: OpenOptions = {}) {
    const { passphrase, me = thisHost(), warn = () => {}, signal } = options
    const file = await readRepositoryFile(target, signal)
    return new Repository(target, file, await openKeys(target, file, passphrase, signal), me, warn)
  }

  /** The same one, whose objects are asked of another target: of a cache before its own. */
  through(target: Target) {
    return new Repository(target, this.file, this.keys, this.me, this.warn)
  }

  get id() {
    return this.file.id
  }

  get cas() {
    return this.file.cas
  }

  /** The keys of the restore points of a machine, or of all, oldest first for each machine. Forgotten ones may be among them. */
  async pointKeys(machine?: string, signal?: AbortSignal): Promise<string[]> {
    const keys = new Set<string>()
    const prefix = machine === undefined ? POINTS : machinePrefix(machine)
    // Sessions first: one that is finished in between has its point by then.
    for await (const { record } of listSessions(this.target, signal, leaveDamaged))
      if (record.state === 'committed' && record.point?.key.startsWith(prefix)) keys.add(record.point.key)
    for await (const { key } of this.target.list(prefix, { signal })) if (timeOfKey(key)) keys.add(key)
    return [...keys].sort()
  }

  /** The restore point, or undefined when it was forgotten or never was. */
  async findPoint(key: string, signal?: AbortSignal): Promise<Point | undefined> {
    const found = await find(this.target, key, signal)
    const body = found ? Buffer.from(found.body) : await this.#committed(key, signal)
    if (!body || isTombstone(body)) return undefined
    return { key, body, manifest: this.decodeAt(body, key) }
  }

  async point(key: string, signal?: AbortSignal): Promise<Point> {
    const point = await this.findPoint(key, signal)
    if (!point)
      throw new NotFound(
        `there is no restore point '${key}' in ${this.target.location}; "stillpoint point list" shows what there is`,
      )
    return point
  }

  /** Every restore point of a machine, or of all. Who is not told of damaged ones gets as far as to the first of them. */
  async *points(machine?: string, signal?: AbortSignal, damaged?: (key: string, error: Damaged) => void): AsyncGenerator<Point> {
    for (const key of await this.pointKeys(machine, signal)) {
      let point: Point | undefined
      try {
        point = await this.findPoint(key, signal)
      } catch (error) {
        if (!damaged || !(error instanceof Damaged)) throw error
        damaged(key, error)
      }
      if (point) yield point
    }
  }

  /** The manifest of a restore point: of the one with this key, and of no other, whose manifest may have come in its place. */
  decodeAt(body: Buffer, key: string) {
    return this.decode(body, key, manifest => {
      const own = pointKey(manifest)
      if (own !== key) throw new Damaged(`what is there is the manifest of ${own}`)
    })
  }

  decode(body: Buffer, what: string, check?: (manifest: Manifest) => void) {
    try {
      const manifest = decodeManifest(body, this.keys, this.id, what)
      check?.(manifest)
      return manifest
    } catch (error) {
      if (!(error instanceof Damaged)) throw error
      throw new Damaged(
        `restore point ${what} is damaged: ${error.message}; where nobody has a copy of that object, "stillpoint point forget" takes it out of the way of the others`,
        { cause: error },
      )
    }
  }

  /** A commit whose second half nobody has done yet. */
  async #committed(key: string, signal?: AbortSignal) {
    for await (const { record } of listSessions(this.target, signal, leaveDamaged))
      if (record.state === 'committed' && record.point?.key === key) return Buffer.from(record.point.manifest, 'base64')
    return undefined
  }
}
