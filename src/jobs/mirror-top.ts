// The layer that a mirror job has over its source (QEMU's mirror_top). With copy-mode write-blocking, it also writes to the target what
// guests write.
//
// Then source and target are changed in the same order: whoever changes a granule of the target holds it (DirtyCopy.lock), and guests hold
// theirs from before the source is written. A granule is marked by the source's node, as by every write; when the target has it too, the
// mark is taken away, unless the granule was dirty before and was written in part only.
//
// A target that does not take a write in time is not waited for any longer, by nobody: from then on guests write to the source only, as in
// copy-mode background, and the job is told. The write that the target was too slow for may still land there, so until then its granules
// stay held, and nobody else writes to them: the mark that is left has them copied anew behind it.

import { z } from 'zod'
import { IoError, NotSupported } from '../base/errors.ts'
import { alignDown, alignUp, endOf, widen, type Range } from '../base/ranges.ts'
import type { DirtyBitmap } from '../bitmaps/dirty-bitmap.ts'
import type { AnyDriver, BlockIo, WriteFlags, ZeroFlags } from '../block/driver.ts'
import { Permission } from '../block/permissions.ts'
import { Passthrough } from '../filters/passthrough.ts'
import type { DirtyCopy } from './dirty-copy.ts'

export interface WriteThrough {
  readonly target: BlockIo
  /** For how long a write waits for it; 0: for ever. */
  readonly timeoutSeconds: number
  readonly bitmap: DirtyBitmap
  readonly copy: DirtyCopy
  /** What is to be copied at first is still being marked: a granule that is clean now may be marked while a guest writes to a part of it. */
  isMarking(this: void): boolean
  /** The target did not take what the source took, or is not waited for. */
  failed(this: void, error: unknown): void
  /** A guest has discarded something, which the job has to bring to the target. */
  discarded(this: void): void
}

/** The driver of one job's layer; `opened` gets it. Whoever changes `mode` has the permissions of the layer worked out anew. */
export const mirrorTop = (
  mode: { readonly blocking: boolean; readonly targetIsBehind: boolean },
  opened: (top: MirrorTop) => void,
): AnyDriver => ({
  name: 'mirror_top',
  options: z.strictObject({}),
  children: {
    file: {
      role: 'filtered',
      /** While guests write to both disks, nobody may write to one of them only. */
      permissions: ({ perm, shared }) => ({
        // What is above the base is no disk of its own any more once the base has some of it, so nobody asks for one.
        perm: mode.targetIsBehind ? perm & ~Permission.consistentRead : perm,
        // The job writes to what is behind the source, of which nobody sees it.
        shared: mode.targetIsBehind
          ? shared | Permission.write
          : mode.blocking && perm & Permission.write
            ? shared & ~(Permission.write | Permission.resize)
            : shared,
      }),
    },
  },
  async open(_options: object, { children, nodeName }) {
    const top = new MirrorTop(children['file']!, nodeName)
    opened(top)
    return top
  },
})

export class MirrorTop extends Passthrough {
  #through: WriteThrough | undefined
  #ended = Promise.withResolvers<void>()

  constructor(
    /** The source. */
    readonly source: BlockIo,
    private readonly nodeName: string,
  ) {
    super(source)
  }

  /** From now on guests write to both. */
  begin(through: WriteThrough) {
    this.#ended = Promise.withResolvers()
    this.#through = through
  }

  /** Guests write to both. */
  get isBlocking() {
    return this.#through !== undefined
  }

  /** Guests wait for the target no longer. What it has not taken is dirty. */
  end() {
    this.#through = undefined
    this.#ended.resolve()
  }

  override write(offset: number, data: Buffer, flags?: WriteFlags) {
    return this.#both({ offset, length: data.length }, disk => disk.write(offset, data, flags))
  }

  override zero(range: Range, flags?: ZeroFlags) {
    const { fast: _fast, ...slow } = flags ?? {}
    return this.#both(range, disk => disk.zero(range, disk === this.source ? flags : slow))
  }

  override async resize(): Promise<never> {
    throw new NotSupported(`'${this.nodeName}' is being mirrored, so the disk cannot change its size; end the job first`)
  }

  /** The target's is left to the job: the two might read differently after one. */
  override async discard(range: Range) {
    try {
      await super.discard(range)
    } finally {
      this.#through?.discarded()
    }
  }

  async #both(range: Range, change: (disk: BlockIo) => Promise<void>) {
    const through = this.#through
    if (!through) return change(this.source)
    const { bitmap, copy, target, isMarking } = through
    const { granularity } = bitmap
    const locked = copy.lock.exclusive(widen(range, granularity, bitmap.size))
    const alone = await this.#waitForTarget(through, locked)
    if (!alone || this.#through !== through) {
      locked.then(lock => lock[Symbol.dispose]()).catch(seen)
      return change(this.source)
    }
    let held: Disposable | undefined = alone
    try {
      const marking = isMarking()
      const headDirty = marking || bitmap.isDirty(range.offset)
      const tailDirty = marking || bitmap.isDirty(endOf(range) - 1)
      await change(this.source)
      // The source has it, and so the guest's request has succeeded whatever becomes of the rest.
      if (this.#through !== through) return
      const taken = this.#tellTarget(through, change(target))
      const done = await this.#waitForTarget(through, taken)
      if (done === undefined) {
        taken.then(() => alone[Symbol.dispose]()).catch(seen)
        held = undefined
      }
      if (!done) return
      copy.countCopied(range.length)
      const from = headDirty ? alignUp(range.offset, granularity) : alignDown(range.offset, granularity)
      const end =
        endOf(range) === bitmap.size || !tailDirty ? alignUp(endOf(range), granularity) : alignDown(endOf(range), granularity)
      if (end > from) bitmap.reset(from, Math.min(end, bitmap.size) - from)
    } finally {
      held?.[Symbol.dispose]()
    }
  }

  #tellTarget(through: WriteThrough, written: Promise<void>): Promise<boolean> {
    return written.then(
      () => true,
      (error: unknown) => {
        if (this.#through === through) through.failed(error)
        return false
      },
    )
  }

  /** What it comes to; undefined where guests do not wait for the target any more. It does not fail. */
  async #waitForTarget<T>(through: WriteThrough, promise: Promise<T>): Promise<T | undefined> {
    const { timeoutSeconds } = through
    const late = () => {
      if (this.#through !== through) return
      this.end()
      through.failed(
        new IoError(
          `the target did not take a guest's write within ${timeoutSeconds} s, and is not waited for any more; look at it, then begin anew`,
        ),
      )
    }
    const timer = timeoutSeconds > 0 ? setTimeout(late, timeoutSeconds * 1000) : undefined
    try {
      return await Promise.race([promise, this.#ended.promise.then(() => undefined)])
    } finally {
      clearTimeout(timer)
    }
  }
}

/** Of what does not fail: if it does, that is a bug. */
const seen = (error: unknown) => {
  throw error
}
