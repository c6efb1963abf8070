// A tray: the bytes of one request to the store, and room for the chunks that are in them, in memory that all sealing threads see. A
// thread gets a tray whole, so that many chunks cost one message, and nothing is copied between the store's reply and what is written.
//
//     input, as long as `inputBytes` says     output, `outputBytes`: the plain bytes, one part behind the other

import { HEADER, ID, TAG, type BlobType } from './blob.ts'
import { Damaged } from './faults.ts'

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

export interface UnpackJob {
  readonly op: 'unpack'
  /** Which of the sealer's. */
  readonly tray: number
  /** To a thread that does not know the tray yet. */
  readonly memory: SharedArrayBuffer | undefined
  readonly inputBytes: number
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

export const outputBytesFor = (maxPlain: number) => Math.max(OUTPUT, maxPlain)
export const inputBytesFor = (maxPlain: number) => outputBytesFor(maxPlain) + BLOBS * (HEADER + TAG) + SPARE

export const trayViews = (memory: SharedArrayBuffer, inputBytes: number) => ({
  input: Buffer.from(memory, 0, inputBytes),
  output: Buffer.from(memory, inputBytes),
})

export class Tray implements Disposable {
  readonly input: Buffer
  readonly output: Buffer
  readonly #memory: SharedArrayBuffer

  constructor(
    private readonly number: number,
    maxPlain: number,
    private readonly run: (job: UnpackJob) => Promise<Unpacked>,
    private readonly give: (tray: Tray) => void,
  ) {
    const inputBytes = inputBytesFor(maxPlain)
    this.#memory = new SharedArrayBuffer(inputBytes + outputBytesFor(maxPlain))
    ;({ input: this.input, output: this.output } = trayViews(this.#memory, inputBytes))
  }

  /** Decrypts, decompresses and checks; for each part what is wrong with it, if anything is. */
  async unpack(
    parts: readonly (TrayPart & { readonly id: Uint8Array })[],
    work: Pick<UnpackJob, 'type' | 'key' | 'idKey'>,
  ): Promise<(Damaged | undefined)[]> {
    const ids = Buffer.allocUnsafeSlow(parts.length * ID)
    for (const [number, { id }] of parts.entries()) ids.set(id, number * ID)
    const places = parts.map(({ offset, length, at, plainLength }) => ({ offset, length, at, plainLength }))
    const [tray, memory, inputBytes] = [this.number, this.#memory, this.input.length]
    const wrong = await this.run({ op: 'unpack', tray, memory, inputBytes, parts: places, ids, ...work })
    return wrong.map(message => (message === null ? undefined : new Damaged(message)))
  }

  [Symbol.dispose]() {
    this.give(this)
  }
}
