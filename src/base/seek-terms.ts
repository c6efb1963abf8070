// What a thread that looks for data in files (seek-worker.ts) and who asks it (seek-threads.ts) have in common.

/** From Linux's include/uapi/linux/fs.h. */
export const SEEK_DATA = 3
export const SEEK_HOLE = 4

/** Int32s that both see: it is to stop, and it is within koffi, or on its way there. */
export const STOP = 0
export const INSIDE = 1

export interface SeekQuestion {
  readonly fd: number
  readonly offset: number
  /** What begins there or behind is not asked for. */
  readonly end: number
  /** Pieces of data, at most. */
  readonly most: number
}

/**
 * Of each piece of data where it begins and where it ends, in order; both Infinity where only a hole follows, and both the same where a hole was punched
 * there meanwhile. So the place behind the last one is where to go on.
 */
export type Places = ArrayLike<number>

/** In one answer. */
export const MOST_PIECES = 4096
