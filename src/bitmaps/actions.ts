// The bitmap verbs as actions of a transaction: block-dirty-bitmap-add, -remove, -clear, -enable, -disable and -merge.
//
// Each reserves what it needs when it is prepared, and takes effect when it is committed, in list order; so [add A, merge B into A,
// clear B] does what it says. Until then others find the bitmaps in use, and the actions of the same transaction do not.

import type { Action } from '../block/action.ts'
import { checkMerge, type BitmapSet, type BitmapToAdd } from './bitmap-set.ts'
import { checkAllows, type BitmapVerb } from './check-allows.ts'
import type { DirtyBitmap } from './dirty-bitmap.ts'

/** The bitmaps of a node. Asked for when the action is prepared: an earlier one of the same transaction may bring the node. */
export type BitmapsOf = () => BitmapSet

/** The name is taken from the start; it records from the commit on. */
export function bitmapAdd(bitmapsOf: BitmapsOf, wanted: BitmapToAdd): Action {
  let bitmaps: BitmapSet
  let bitmap: DirtyBitmap
  let room: Disposable | undefined
  return {
    async prepare(transaction) {
      bitmaps = bitmapsOf()
      bitmap = bitmaps.reserve(wanted, transaction)
      try {
        room = await roomFor(bitmaps, bitmap, bitmap.recording)
      } catch (error) {
        bitmaps.cancel(bitmap)
        throw error
      }
    },
    commit: () => bitmaps.start(bitmap),
    settle: () => settled(bitmaps, bitmap, room),
    abort() {
      bitmaps.cancel(bitmap)
      room?.[Symbol.dispose]()
    },
  }
}

/** What is stored of a bitmap must not want space when it is too late to refuse. */
async function roomFor(bitmaps: BitmapSet, { name, granularity, persistent }: DirtyBitmap, enabled: boolean) {
  return persistent && name !== undefined ? bitmaps.keeper?.makeRoom({ name, granularity, enabled }) : undefined
}

async function settled(bitmaps: BitmapSet, { persistent }: DirtyBitmap, room?: Disposable) {
  using _room = room
  if (persistent) await bitmaps.keeper?.settle()
}

/** It keeps its name until the commit, and nothing else can be done with it from the start, not even by the same transaction. */
export function bitmapRemove(bitmapsOf: BitmapsOf, name: string): Action {
  const remover = {}
  let bitmaps: BitmapSet
  let bitmap: DirtyBitmap
  let hold: Disposable
  return {
    prepare(transaction) {
      bitmaps = bitmapsOf()
      bitmap = bitmaps.get(name, transaction)
      checkAllows(bitmap, 'remove', transaction)
      hold = bitmap.hold(remover)
    },
    commit() {
      bitmaps.release(bitmap)
      hold[Symbol.dispose]()
    },
    settle: () => settled(bitmaps, bitmap),
    abort: () => hold[Symbol.dispose](),
  }
}

export const bitmapClear = (bitmapsOf: BitmapsOf, name: string) => change(bitmapsOf, name, 'clear', bitmap => bitmap.clear())

export const bitmapEnable = (bitmapsOf: BitmapsOf, name: string) => change(bitmapsOf, name, 'enable', bitmap => bitmap.enable())

export const bitmapDisable = (bitmapsOf: BitmapsOf, name: string) =>
  change(bitmapsOf, name, 'disable', bitmap => bitmap.disable())

/** The sources may be of other nodes, and others may read them meanwhile. None at all is no change. */
export function bitmapMerge(
  bitmapsOf: BitmapsOf,
  target: string,
  sources: readonly { readonly bitmapsOf?: BitmapsOf; readonly name: string }[],
): Action {
  let set: BitmapSet
  let into: DirtyBitmap
  let from: readonly DirtyBitmap[]
  let holds: readonly Disposable[]
  let room: Disposable | undefined
  const release = () => holds.forEach(hold => hold[Symbol.dispose]())
  return {
    async prepare(transaction) {
      set = bitmapsOf()
      into = set.get(target, transaction)
      // In QEMU's order, so that of several errors the same one is told.
      from = sources.map(source => {
        const bitmap = (source.bitmapsOf ?? bitmapsOf)().get(source.name, transaction)
        checkMerge(into, bitmap, transaction)
        return bitmap
      })
      holds = [into.hold(transaction), ...from.map(bitmap => bitmap.hold(transaction, { shared: true }))]
      try {
        room = await roomFor(set, into, into.recording)
      } catch (error) {
        release()
        throw error
      }
    },
    commit() {
      for (const bitmap of from) into.mergeFrom(bitmap)
      release()
    },
    secure: () => (sources.some(source => source.bitmapsOf) ? settled(set, into) : undefined),
    settle: () => settled(set, into, room),
    abort() {
      release()
      room?.[Symbol.dispose]()
    },
  }
}

function change(bitmapsOf: BitmapsOf, name: string, verb: BitmapVerb, effect: (bitmap: DirtyBitmap) => void): Action {
  let bitmaps: BitmapSet
  let bitmap: DirtyBitmap
  let hold: Disposable
  let room: Disposable | undefined
  return {
    async prepare(transaction) {
      bitmaps = bitmapsOf()
      bitmap = bitmaps.get(name, transaction)
      checkAllows(bitmap, verb, transaction)
      hold = bitmap.hold(transaction)
      try {
        room = await roomFor(bitmaps, bitmap, bitmap.recording || verb === 'enable')
      } catch (error) {
        hold[Symbol.dispose]()
        throw error
      }
    },
    commit() {
      effect(bitmap)
      hold[Symbol.dispose]()
    },
    settle: () => settled(bitmaps, bitmap, room),
    abort() {
      hold[Symbol.dispose]()
      room?.[Symbol.dispose]()
    },
  }
}
