// What the main thread and the thread that opens a ZIP file say to each other.

export interface ZipWorkerData {
  readonly path: string
}

export interface ZipJob {
  readonly number: number
  readonly name: string
  /** Bytes that the entry may have at most, when it is plain. */
  readonly most: number
}

export interface ZipAnswer {
  /** Undefined: of opening the file. */
  readonly number?: number
  readonly bytes?: Uint8Array<ArrayBuffer>
  /** A sentence; undefined: it was done. */
  readonly failure?: string
}
