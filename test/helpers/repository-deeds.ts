// What is done with a repository, each as a process of its own would do it: here in this one, or in one that is really killed
// (mortal-processes.ts).

import { Busy } from '../../src/base/errors.ts'
import { Unavailable, type Target } from '../../src/push/target.ts'
import type { Range } from '../../src/base/ranges.ts'
import { collect } from '../../src/repository/collector.ts'
import { prune } from '../../src/repository/prune.ts'
import { repack } from '../../src/repository/repack.ts'
import { Repository } from '../../src/repository/repository.ts'
import { Sealer } from '../../src/repository/sealer.ts'
import { MortalTarget, type Fate } from './mortal-target.ts'
import { bitmapOf, opaque, pushDisks, restored, sourceOf } from './push-point.ts'

export type Deed =
  | { readonly op: 'push'; readonly time: number; readonly disks: readonly DeedDisk[] }
  | { readonly op: 'prune'; readonly last: number }
  | { readonly op: 'collect' }
  | { readonly op: 'repack' }
  | { readonly op: 'restore'; readonly key: string }

export interface DeedDisk {
  readonly name: string
  readonly bytes: Uint8Array
  /** Whether it says where its holes are. */
  readonly isOpaque: boolean
  readonly checkpoint: string
  /** Since each checkpoint, the newest first; none: all bitmaps were lost. */
  readonly changes: readonly { readonly since: string; readonly ranges: readonly Range[] }[]
}

/** What has come to its end: of a push the restore point's key, and how each disk was read. */
export interface Done {
  readonly key?: string
  readonly modes?: Readonly<Record<string, string>>
}

/** Done; or not, and why. */
export type Outcome = { readonly done: Done } | { readonly failed: string }

export interface Doer {
  do(deed: Deed, fate: Fate | undefined): Promise<Outcome>
}

/** With room for the chunks that there are, and no more: each process that is started has to get it from the system. */
export const sealer = Sealer.start({ maxPlain: 65_536, threads: 1 })

export const open = (target: Target, passphrase: string | undefined) =>
  Repository.open(target, passphrase === undefined ? {} : { passphrase })

/** Nobody else is alive meanwhile: who has left a session is dead. */
export const COLLECT = { graceMs: 0, staleMs: 0, pollMs: 1 }

export async function perform(repository: Repository, deed: Deed): Promise<Done> {
  switch (deed.op) {
    case 'push': {
      const disks = deed.disks.map(({ name, bytes, isOpaque, checkpoint, changes }) => ({
        name,
        source: (isOpaque ? opaque : sourceOf)(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)),
        checkpoint,
        changes:
          changes.length > 0
            ? changes.map(({ since, ranges }) => ({ since, bitmap: bitmapOf(ranges) }))
            : { missing: 'it was lost' },
      }))
      const { key, manifest } = await pushDisks(repository, disks, { time: new Date(deed.time), packSize: 1 << 19, sealer })
      return { key, modes: Object.fromEntries(manifest.disks.map(({ name, read }) => [name, read.mode])) }
    }
    case 'prune':
      await prune(repository, 'vm', { last: deed.last })
      return {}
    case 'collect':
      try {
        await collect(repository, COLLECT)
      } catch (error) {
        // What one who is dead asked for last may be done by now.
        if (!(error instanceof Busy)) throw error
      }
      return {}
    case 'repack':
      await repack(repository, { budget: Infinity, waste: 0.2, beatMs: 0, packSize: 1 << 19 })
      return {}
    case 'restore': {
      const { manifest } = await repository.point(deed.key)
      for (const { name } of manifest.disks) await restored(repository, deed.key, name, { sealer })
      return {}
    }
  }
}

/** Dies only as far as the store can tell. */
export class InThisProcess implements Doer {
  constructor(
    private readonly target: Target,
    private readonly passphrase: string | undefined,
  ) {}

  async do(deed: Deed, fate: Fate | undefined): Promise<Outcome> {
    const mortal = new MortalTarget(this.target, fate)
    try {
      const done = await perform(await open(mortal, this.passphrase), deed)
      return mortal.isDead ? { failed: 'it was killed' } : { done }
    } catch (error) {
      // A process that was killed says nothing; whatever is thrown here in its stead is not its word.
      if (!mortal.isDead && !(error instanceof Unavailable)) throw error
      return { failed: (error as Error).message }
    }
  }
}
