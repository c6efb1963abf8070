// Reads: into the caller's buffer as a whole, or part by part as the server sent it.

import { Coverage } from './coverage.ts'
import { NbdProtocolError } from './errors.ts'
import { Command } from './protocol.ts'
import { Request } from './request.ts'
import type { Session } from './session.ts'

abstract class AnyRead<Result> extends Request<Result> {
  #coverage: Coverage

  constructor(
    flags: number,
    offset: number,
    protected readonly into: Buffer,
  ) {
    super(Command.READ, flags, offset, into.length)
    this.#coverage = new Coverage(offset, into.length)
  }

  override begin(session: Session): void {
    super.begin(session)
    this.#coverage = new Coverage(this.offset, this.length)
  }

  override data(offset: number, length: number): Buffer | undefined {
    this.#coverage.add(offset, length)
    return this.isOver ? undefined : this.#place(offset, length)
  }

  override hole(offset: number, length: number): void {
    this.#coverage.add(offset, length)
    if (!this.isOver) this.#place(offset, length).fill(0)
  }

  #place(offset: number, length: number) {
    return this.into.subarray(offset - this.offset, offset - this.offset + length)
  }

  protected override complete(): void {
    if (!this.#coverage.complete) throw new NbdProtocolError(`${this.title} was answered in part`)
    this.finish()
  }

  protected abstract finish(): void
}

export class ReadRequest extends AnyRead<void> {
  protected finish(): void {
    this.resolve()
  }
}

/** A piece of a sparse read. A hole reads as zeroes, and its bytes in the buffer are zero. */
export type SparsePart = { readonly offset: number; readonly length: number } & (
  { readonly type: 'data'; readonly data: Buffer } | { readonly type: 'hole' }
)

export class SparseReadRequest extends AnyRead<SparsePart[]> {
  #parts: SparsePart[] = []

  override begin(session: Session): void {
    super.begin(session)
    this.#parts = []
  }

  override data(offset: number, length: number): Buffer | undefined {
    const data = super.data(offset, length)
    if (data) this.#parts.push({ type: 'data', offset, length, data })
    return data
  }

  override hole(offset: number, length: number): void {
    super.hole(offset, length)
    this.#parts.push({ type: 'hole', offset, length })
  }

  protected finish(): void {
    this.resolve(this.#parts.sort((a, b) => a.offset - b.offset))
  }
}
