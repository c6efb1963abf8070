// Where a node's dirty bitmaps are kept while nobody has it open: what an image format that can store bitmaps offers to the graph.
//
// A store knows images and not what bitmaps mean. All that changes in one call becomes durable at one instant: a crash leaves what was
// stored before or what is stored now. A bitmap that is `in use` has a newer one in memory; what is stored of it counts only for those who
// have the activity log of the session that stored it (activity-log.ts).

import type { DirtyBitmap } from './dirty-bitmap.ts'

/** What is the same of every bitmap, in memory and stored. */
export interface BitmapShape {
  readonly name: string
  /** Bytes to a bit, a power of two. */
  readonly granularity: number
  /** It records writes from the first one on. */
  readonly enabled: boolean
}

/** Says under which log an image is written, and how often bitmaps were stored under it. */
export interface Session {
  /** 32 hex digits. */
  readonly id: string
  readonly generation: number
}

export interface StoredBitmap extends BitmapShape {
  readonly inUse: boolean
  /** Why what is stored means nothing, whoever asks; undefined where it does, or does for whoever has the log. */
  readonly damage: string | undefined
  /** Adds its marks. @throws InconsistentBitmap where they cannot be read */
  readInto(into: DirtyBitmap): Promise<void>
}

export interface StoredBitmaps {
  /** In the order they were stored in. */
  readonly bitmaps: readonly StoredBitmap[]
  /** What is wrong with all of them together; there may be more than these then, and none can be added. */
  readonly problem: string | undefined
  /** Under which the image was last written; undefined where it was closed, or where somebody else has written to it since. */
  readonly session: Session | undefined
  /** Bytes of the disk when they were stored. Another size than the disk's is that of a resize that was not ended. */
  readonly size: number
}

/** A bitmap as it is to be stored. */
export interface BitmapToStore extends BitmapShape {
  readonly inUse: boolean
  /** Bytes in the order of qcow2's bitmaps extension. */
  readonly byteLength: number
  readBytes(this: void, offset: number, length: number): Buffer
}

export interface BitmapsChange {
  /** New ones, and those that take the place of the ones of the same name. All others stay as they are. */
  readonly stored: readonly BitmapToStore[]
  readonly removed: readonly string[]
  /** Undefined: what is in use means nothing to anybody. To be asked for at the last moment: a log may fail. */
  readonly session: Session | undefined
}

export interface BitmapStore {
  /**
   * The image cannot say who has written to it, as raw images cannot: what is stored counts only where its last write is known. So it is
   * in use from the first write on, also where that changes nothing that a bitmap would mark.
   */
  readonly cannotTellWriters?: boolean
  /** What is there. From now on whoever asked sees to it that every write is recorded. */
  load(): Promise<StoredBitmaps>
  /** Throws, in QEMU's words, what is wrong with storing such a bitmap. */
  checkStorable(wanted: { readonly name: string; readonly granularity: number; readonly size: number }): void
  /**
   * Sets space aside so that storing all of `recording`, and each of `once` beside them, never fails for want of it, until the next
   * call. @throws NoSpace, and then keeps what was set aside before
   */
  reserve(recording: readonly BitmapShape[], once?: readonly BitmapShape[]): Promise<void>
  /** Durable when it returns. Where it fails, nothing has changed. */
  store(change: BitmapsChange): Promise<void>
  /** Before the disk is written under them: these are newer in memory from now on, and so says the image, durably. */
  markInUse(names: readonly string[], session: Session | undefined): Promise<void>
}
