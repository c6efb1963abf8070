// What the repositories of the configuration hold, for the page and the metrics: read anew now and then while somebody looks, and never on a
// request's time. A store may be slow, far away or gone; then what is told is what was last seen, when that was, and what is wrong.

import { isDeepStrictEqual } from 'node:util'
import { Cancelled, Fault, messageOf } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import { openPlace, openRepository } from '../push/open-place.ts'
import { NoRepository } from '../repository/faults.ts'
import { lastChecks, type LastCheck } from '../repository/last-checks.ts'
import { POINTS, timeOfKey, type Manifest } from '../repository/manifest.ts'
import type { Repository } from '../repository/repository.ts'
import type { Target, TargetEntry } from '../repository/target.ts'
import type { RepositorySettings } from '../settings/settings.ts'

const AGE_MS = 10 * 60_000
/** A store that does not answer is not waited for any longer. */
const TIMEOUT_MS = 120_000
/** The newest of all machines. */
const MOST_POINTS = 1000

export interface PointSeen {
  readonly machine: string
  readonly point: string
  readonly time: string
  readonly consistency: Manifest['consistency']
  readonly complete: boolean
  /** Bytes: of the disks; that changed since the one before; that the repository did not have, as stored. */
  readonly size: number
  readonly changed: number
  readonly stored: number
}

export interface Holding {
  readonly location: string
  readonly encrypted: boolean
  /** Packs, and the bytes of them. */
  readonly packs: number
  readonly bytes: number
  /** Oldest first. */
  readonly points: readonly PointSeen[]
  /** Older ones that are not in `points`. */
  readonly older: number
  /** The last one of each level. */
  readonly checks: readonly LastCheck[]
}

export interface Survey {
  /** As far as it has ever been read, and when. */
  readonly holds?: Holding
  readonly seen?: string
  /** It is being read. */
  readonly reading: boolean
  /** Why it could not be read the last time. */
  readonly problem?: string
  /** There is nothing yet, which is no fault. */
  readonly missing?: boolean
}

interface Known {
  settings: RepositorySettings
  holds?: Holding
  seen?: Date
  problem?: string
  missing?: boolean
  /** When it was last begun, by the time of day and by the monotonic clock. */
  begun?: { readonly time: number; readonly at: number }
  reading?: Promise<void>
  readonly manifests: Map<string, { readonly size: number; readonly seen: PointSeen | undefined }>
}

export class RepositorySurvey implements AsyncDisposable {
  readonly #known = new Map<string, Known>()
  readonly #stop = new AbortController()

  /** `changed` is called whenever there is something new to tell. */
  constructor(
    private readonly log: Log,
    private readonly changed: () => void,
  ) {}

  /** What is known of it; it is read anew where that is old, or was begun before `since`, when something was pushed there. */
  of(name: string, settings: RepositorySettings, since = 0, ageMs = AGE_MS): Survey {
    let known = this.#known.get(name)
    if (!known || !isDeepStrictEqual(known.settings, settings))
      this.#known.set(name, (known = { settings, manifests: new Map() }))
    const { begun } = known
    const isOld = !begun || performance.now() - begun.at > ageMs || begun.time <= since
    if (isOld && !known.reading && !this.#stop.signal.aborted) this.#begin(name, known)
    const { holds, seen, problem, missing, reading } = known
    return {
      ...(holds && { holds }),
      ...(seen && { seen: seen.toISOString() }),
      reading: reading !== undefined,
      ...(problem !== undefined && { problem }),
      ...(missing && { missing }),
    }
  }

  #begin(name: string, known: Known) {
    known.begun = { time: Date.now(), at: performance.now() }
    known.reading = this.#read(name, known).finally(() => {
      known.reading = undefined
      this.changed()
    })
  }

  /** Never rejects. */
  async #read(name: string, known: Known) {
    const limit = AbortSignal.timeout(TIMEOUT_MS)
    const signal = AbortSignal.any([this.#stop.signal, limit])
    try {
      const holds = await look(name, known, this.log, signal)
      Object.assign(known, { holds, seen: new Date(), problem: undefined, missing: undefined })
    } catch (thrown) {
      if (!(thrown instanceof Fault) && !signal.aborted)
        this.log.error('a repository could not be looked at', { repository: name, err: thrown })
      const problem = limit.aborted ? `it could not be read within ${TIMEOUT_MS / 1000} seconds` : messageOf(thrown)
      Object.assign(known, { problem, missing: thrown instanceof NoRepository })
    }
  }

  /** Nobody is left at work when it is done. */
  async [Symbol.asyncDispose]() {
    this.#stop.abort(new Cancelled('the daemon stopped'))
    await Promise.all([...this.#known.values()].flatMap(({ reading }) => reading ?? []))
  }
}

async function look(name: string, { settings, manifests }: Known, log: Log, signal: AbortSignal): Promise<Holding> {
  await using place = await openPlace(name, settings, log, signal)
  const repository = await openRepository(place, signal)
  const { target, file } = repository
  let [packs, bytes] = [0, 0]
  for (const prefix of ['packs/', 'meta/'])
    for await (const { size } of listed(target, prefix, signal)) {
      packs++
      bytes += size
    }
  const all: { readonly key: string; readonly size: number; readonly time: Date }[] = []
  for await (const { key, size } of listed(target, POINTS, signal)) {
    const time = timeOfKey(key)
    if (time) all.push({ key, size, time })
  }
  all.sort((a, b) => a.time.getTime() - b.time.getTime())
  const wanted = all.slice(-MOST_POINTS)
  const keys = new Set(wanted.map(({ key }) => key))
  for (const key of manifests.keys()) if (!keys.has(key)) manifests.delete(key)
  for (const { key, size } of wanted) {
    // A tombstone, which takes the place of one that is forgotten, has another size.
    if (manifests.get(key)?.size !== size) manifests.set(key, { size, seen: await seenOf(repository, key, signal) })
  }
  const points = wanted.flatMap(({ key }) => manifests.get(key)?.seen ?? [])
  const checks = await lastChecks(target, signal)
  return { location: target.location, encrypted: file.encrypted, packs, bytes, points, older: all.length - wanted.length, checks }
}

async function* listed(target: Target, prefix: string, signal: AbortSignal): AsyncGenerator<TargetEntry> {
  for await (const entry of target.list(prefix, { signal })) {
    signal.throwIfAborted()
    yield entry
  }
}

async function seenOf(repository: Repository, key: string, signal: AbortSignal): Promise<PointSeen | undefined> {
  signal.throwIfAborted()
  const { manifest } = (await repository.findPoint(key, signal)) ?? {}
  if (!manifest) return undefined
  const { machine, time, consistency, complete, disks } = manifest
  const sum = (of: (disk: (typeof disks)[number]) => number) => disks.reduce((total, disk) => total + of(disk), 0)
  return {
    machine,
    point: key.slice(POINTS.length),
    time,
    consistency,
    complete,
    size: sum(({ size }) => size),
    changed: sum(({ dirty }) => dirty),
    stored: sum(({ stored }) => stored),
  }
}
