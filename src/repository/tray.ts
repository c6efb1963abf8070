// A tray: the bytes of one request to the store, and room for the chunks that are in them, in memory that all sealing threads see. A
// thread gets a tray whole, so that many chunks cost one message, and nothing is copied between the store's reply and what is written.
//
//     input, `inputBytesFor` a chunk's longest     output, `outputBytesFor` it: the plain bytes, one part behind the other
//
// The output begins with a page, so that a disk can take its chunks around the page cache as they lie there.

import { alignUp } from '../base/ranges.ts'
import { HEADER, ID, TAG, type BlobType } from './blob.ts'
import { Damaged } from './faults.ts'
import type { Place } from './seal-job.ts'

/** A blob in the input, and where its plain bytes go. */
export interface TrayPart {
  /** In the input. */
  readonly offset: number
  readonly length: number
  /** In the output. */
  readonly at: number
  /** Bytes that it must have. */
  readonly plainLength: number
}

export interface UnpackJob extends Place {
  readonly op: 'unpack'
  readonly maxPlain: number
  readonly parts: readonly TrayPart[]
  /** Of the parts, one behind the other: a message with a view of bytes holds all that they are a part of. */
  readonly ids: Uint8Array
  readonly type: BlobType
  readonly key: Uint8Array | undefined
  readonly idKey: Uint8Array | undefined
}

/** For each part what is wrong with it, if anything is. */
export type Unpacked = readonly (string | null)[]

/** Plain bytes of a request; one chunk is always taken. */
const OUTPUT = 2 << 20
/** Bytes between the blobs of a request, which are read with them. */
const SPARE = 256 << 10
/** The smallest chunks are 64 KiB. */
const BLOBS = 32
const PAGE = 4096

export const outputBytesFor = (maxPlain: number) => alignUp(Math.max(OUTPUT, maxPlain), PAGE)
export const inputBytesFor = (maxPlain: number) => alignUp(outputBytesFor(maxPlain) + BLOBS * (HEADER + TAG) + SPARE, PAGE)

export const trayBytesFor = (maxPlain: number) => inputBytesFor(maxPlain) + outputBytesFor(maxPlain)

export function trayViews(area: Buffer, place: number, maxPlain: number) {
  const output = place + inputBytesFor(maxPlain)
  return { input: area.subarray(place, output), output: area.subarray(output, place + trayBytesFor(maxPlain)) }
}

export class Tray implements Disposable {
  readonly input: Buffer
  readonly output: Buffer

  constructor(
    private readonly at: { readonly area: number; readonly memory: Buffer; readonly place: number },
    private readonly maxPlain: number,
    private readonly run: (job: UnpackJob) => Promise<Unpacked>,
    private readonly give: (tray: Tray) => void,
  ) {
    ;({ input: this.input, output: this.output } = trayViews(at.memory, at.place, maxPlain))
  }

  /** Decrypts, decompresses and checks; for each part what is wrong with it, if anything is. */
  async unpack(
    parts: readonly (TrayPart & { readonly id: Uint8Array })[],
    work: Pick<UnpackJob, 'type' | 'key' | 'idKey'>,
  ): Promise<(Damaged | undefined)[]> {
    const ids = Buffer.allocUnsafeSlow(parts.length * ID)
    for (const [number, { id }] of parts.entries()) ids.set(id, number * ID)
    const places = parts.map(({ offset, length, at, plainLength }) => ({ offset, length, at, plainLength }))
    const wrong = await this.run({ op: 'unpack', ...this.at, maxPlain: this.maxPlain, parts: places, ids, ...work })
    return wrong.map(message => (message === null ? undefined : new Damaged(message)))
  }

  [Symbol.dispose]() {
    this.give(this)
  }
}
