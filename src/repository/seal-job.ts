// What the main thread and the sealing threads say to each other, and how they divide the memory that they share.
//
// A slot is three areas: an input and an output, each with room for a blob of the largest chunk, and an id.

import { HEADER, ID, TAG, type BlobType } from './blob.ts'
import type { Unpacked, UnpackJob } from './tray.ts'

export interface WorkerData {
  readonly memory: SharedArrayBuffer
  readonly slotBytes: number
}

export type Job = { readonly number: number } & (
  | { readonly op: 'identify'; readonly slot: number; readonly length: number; readonly idKey: Uint8Array | undefined }
  | {
      /** `store` is both: identify, and seal what is not zero. */
      readonly op: 'seal' | 'store'
      readonly idKey: Uint8Array | undefined
      readonly slot: number
      readonly length: number
      readonly type: BlobType
      readonly counter: number
      readonly key: Uint8Array | undefined
    }
  | UnpackJob
  | { readonly op: 'digest'; readonly bytes: SharedArrayBuffer; readonly length: number }
)

export type Result = string | number | Unpacked

export interface Answer {
  readonly number: number
  readonly result?: Result
  readonly failure?: { readonly message: string; readonly damaged: boolean; readonly stack: string | undefined }
}

const areaBytes = (maxPlain: number) => HEADER + maxPlain + TAG
const ID_AREA = 64

export const slotBytesFor = (maxPlain: number) => 2 * areaBytes(maxPlain) + ID_AREA

export function slotView(memory: SharedArrayBuffer, slot: number, slotBytes: number) {
  const area = (slotBytes - ID_AREA) / 2
  const at = slot * slotBytes
  return {
    input: Buffer.from(memory, at, area),
    output: Buffer.from(memory, at + area, area),
    id: Buffer.from(memory, at + 2 * area, ID),
  }
}
