// What a disk's bitmaps say has changed, and where: for each checkpoint a row of cells, each a part of the disk with the number of its dirty
// granules.
//
// A cell is a whole number of granules, so that its number is exact, and a bitmap is counted by its chunks: what is empty or full is never
// looked into, and nothing is copied. Even so a disk may have billions of granules; after so many the event loop has its turn. A row is
// counted again when a bitmap of it has other marks: they only ever grow in number, or its revision says that some were taken away.

import { setImmediate as turn } from 'node:timers/promises'
import { CheckpointInconsistent } from '../base/errors.ts'
import { DirtyBitmap } from '../bitmaps/dirty-bitmap.ts'
import { GRANULARITY } from '../machines/checkpoint-bitmaps.ts'
import type { Checkpoint, Checkpoints } from '../machines/checkpoints.ts'
import type { Disk } from '../machines/machine.ts'

/** Across a disk. */
const MOST_CELLS = 256
/** Granules that are counted before others have their turn: a few milliseconds at worst. */
const AT_ONCE = 2 ** 25

export interface HeatRow {
  readonly checkpoint: string
  /** Dirty granules of each cell; undefined where that is not known. */
  readonly cells?: readonly number[]
  /** Bytes: the sum of them. */
  readonly changed?: number
  /** Why it is not known. */
  readonly problem?: string
}

export interface HeatMap {
  readonly granularity: number
  /** Granules of a cell; of the last one perhaps fewer. */
  readonly each: number
  readonly granules: number
  /** Newest first. */
  readonly rows: readonly HeatRow[]
}

interface Counted {
  readonly generation: string
  readonly cells: readonly number[]
}

export class HeatMaps {
  /** By the first of a row's bitmaps. */
  readonly #counted = new WeakMap<DirtyBitmap, Counted>()

  /** Of the newest checkpoints that know the disk, `most` of them. */
  async of(disk: Disk, checkpoints: Checkpoints, most: number): Promise<HeatMap> {
    const granules = Math.ceil(disk.node.size / GRANULARITY)
    const each = Math.max(1, Math.ceil(granules / MOST_CELLS))
    const known = checkpoints.list.filter(({ disks }) => disks.includes(disk.name))
    const rows: HeatRow[] = []
    for (const checkpoint of most > 0 ? known.slice(-most).toReversed() : [])
      rows.push(await this.#row(disk, checkpoints, checkpoint, { granules, each }))
    return { granularity: GRANULARITY, each, granules, rows }
  }

  async #row(
    disk: Disk,
    checkpoints: Checkpoints,
    checkpoint: Checkpoint,
    size: { readonly granules: number; readonly each: number },
  ): Promise<HeatRow> {
    const { name } = checkpoint
    try {
      const cells = await this.#cells(checkpoints.changesIn(checkpoint, disk) ?? [], size)
      return { checkpoint: name, cells, changed: cells.reduce((sum, count) => sum + count, 0) * GRANULARITY }
    } catch (error) {
      if (!(error instanceof CheckpointInconsistent)) throw error
      return { checkpoint: name, problem: error.message }
    }
  }

  async #cells(bitmaps: readonly DirtyBitmap[], { granules, each }: { granules: number; each: number }) {
    const [first] = bitmaps
    if (!first) return []
    const generationNow = () => `${granules} ${bitmaps.map(({ revision, count }) => `${revision}:${count}`).join(' ')}`
    const generation = generationNow()
    const known = this.#counted.get(first)
    if (known?.generation === generation) return known.cells
    const alike = bitmaps.every(({ granularity }) => granularity === GRANULARITY) ? bitmaps : [inOne(bitmaps)]
    const cells: number[] = []
    let counted = 0
    for (let from = 0; from < granules; from += each) {
      const to = Math.min(granules, from + each)
      cells.push(DirtyBitmap.granulesInAny(alike, from, to))
      if ((counted += to - from) < AT_ONCE) continue
      counted = 0
      await turn()
    }
    // Of what changed while it was counted the next one who looks is told.
    if (generationNow() === generation) this.#counted.set(first, { generation, cells })
    return cells
  }
}

/** Bitmaps that somebody else has made under the name of a checkpoint, with granules of another size. */
function inOne(bitmaps: readonly DirtyBitmap[]) {
  const union = new DirtyBitmap({ size: bitmaps[0]!.size, granularity: GRANULARITY, disabled: true })
  for (const bitmap of bitmaps) union.mergeFrom(bitmap)
  return union
}
