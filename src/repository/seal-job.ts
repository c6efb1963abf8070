// What the main thread and the sealing threads say to each other, and how they divide the memory that they share.
//
// A slot has an input, with room for some chunks that lie one behind the other, an output, with room for their blobs, and an id for each.
// All slots lie in one area of memory, and all trays (tray.ts) in another: a thread is given it with the first piece of work in it, and keeps it
// until it is told to forget it. For whoever gets memory by a message it is new memory each time, which is to be let go of in its turn.

import { alignUp } from '../base/ranges.ts'
import { HEADER, ID, TAG, type BlobType } from './blob.ts'
import type { Unpacked, UnpackJob } from './tray.ts'

/** Pieces of work of one kind, or what is to be forgotten. */
export type Message = readonly Job[] | { readonly forget: readonly number[] } | 'end'

/** Memory of a sealer; numbers are never given twice. */
export interface Area {
  readonly area: number
  /** To a thread that does not know the area yet. */
  readonly memory: Uint8Array | undefined
}

export interface Place extends Area {
  /** Where in the area the slot or the tray begins. */
  readonly place: number
}

/** Bytes of a file, to be read into a slot by the thread that works in it. */
export interface FileBytes {
  readonly fd: number
  readonly at: number
}

export interface SlotJob extends Place {
  readonly op: 'identify' | 'seal' | 'store'
  /** Where the input comes from, if it is not there yet: only what the page cache holds, as nobody waits for a disk here. */
  readonly from?: FileBytes | undefined
  /** Of plain bytes, as many as the slot's input has. */
  readonly inputBytes: number
  /** Of the chunks, in order. */
  readonly lengths: readonly number[]
  readonly idKey?: Uint8Array | undefined
}

/** What blobs are made with: the first one has this counter, each other one the next. */
export interface Sealing {
  readonly type: BlobType
  readonly counter: number
  readonly key: Uint8Array | undefined
}

export type Job = { readonly number: number } & (
  | (SlotJob & { readonly op: 'identify' })
  /** Those of the chunks, whose ids are there already. */
  | (SlotJob & Sealing & { readonly op: 'seal'; readonly wanted: readonly boolean[] })
  /** Both: whatever is not zero is identified, and sealed. */
  | (SlotJob & Sealing & { readonly op: 'store' })
  | UnpackJob
  | { readonly op: 'digest'; readonly bytes: Uint8Array }
)

/**
 * Of a slot: for each chunk 0 where it is zero, or not wanted; else 1, or the length of its blob, which follows the one before. Undefined where the
 * input could not be read at once.
 */
export type SlotResult = readonly number[] | undefined
export type Result = string | SlotResult | Unpacked

export interface Answer {
  readonly number: number
  readonly result?: Result
  readonly failure?: { readonly message: string; readonly damaged: boolean; readonly stack: string | undefined }
}

/** No chunk is smaller, but the last one of a disk. */
const LEAST_CHUNK = 64 << 10

/** How many chunks fit a slot. */
export const slotChunks = (inputBytes: number) => Math.max(1, Math.floor(inputBytes / LEAST_CHUNK))
const outputBytes = (inputBytes: number) => inputBytes + slotChunks(inputBytes) * (HEADER + TAG)
/** A multiple of what a processor fetches at once, so that no two threads write to the same. */
export const slotBytesFor = (inputBytes: number) =>
  alignUp(inputBytes + outputBytes(inputBytes) + slotChunks(inputBytes) * ID, 64)

export function slotView(area: Buffer, place: number, inputBytes: number) {
  const output = place + inputBytes
  const ids = output + outputBytes(inputBytes)
  return {
    input: area.subarray(place, output),
    output: area.subarray(output, ids),
    ids: area.subarray(ids, ids + slotChunks(inputBytes) * ID),
  }
}
