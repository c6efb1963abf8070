// What may be asked of an export, checked before anything is sent: its range, its block sizes, and what it offers.

import { NbdUsageError } from './errors.ts'
import { areBlockSizes } from './export-info.ts'
import { PORTABLE_PAYLOAD, TransmissionFlag } from './protocol.ts'
import { alignDown, type Range } from './ranges.ts'
import type { BlockSizes, ExportInfo } from './session.ts'

/** Where the server says nothing: what the protocol advises "a client desiring maximum interoperability". */
const PORTABLE: BlockSizes = { minimum: 512, preferred: 4096, maximum: PORTABLE_PAYLOAD }

/** What is taken for the server's where it says nothing. Throws where that cannot be. */
export function assumedBlockSizes(assumed: Partial<BlockSizes> = {}): BlockSizes {
  const { minimum, maximum } = { ...PORTABLE, ...assumed }
  const { preferred = Math.max(minimum, Math.min(PORTABLE.preferred, maximum)) } = assumed
  if (!areBlockSizes({ minimum, preferred, maximum }))
    throw new NbdUsageError(`assumeBlockSizes that cannot be: minimum ${minimum}, preferred ${preferred}, maximum ${maximum}`)
  return { minimum, preferred, maximum }
}

export class Limits {
  readonly blockSizes: BlockSizes
  readonly size: number

  constructor(
    private readonly info: ExportInfo,
    assumed: BlockSizes,
  ) {
    const { minimum, preferred, maximum } = info.blockSizes ?? assumed
    this.size = info.size
    this.blockSizes = { minimum, preferred, maximum: alignDown(Math.min(maximum, PORTABLE_PAYLOAD), minimum) || minimum }
  }

  has(flag: keyof typeof TransmissionFlag): boolean {
    return (this.info.flags & TransmissionFlag[flag]) !== 0
  }

  /** Throws where the export does not have the range. */
  checkRange(what: string, { offset, length }: Range): void {
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < 0 || length < 0)
      throw new NbdUsageError(`${what} of ${length} bytes at ${offset}: both must be whole numbers, and not negative`)
    if (offset + length > this.size)
      throw new NbdUsageError(`${what} of ${length} bytes at ${offset} reaches past the end of the export (${this.size} bytes)`)
  }

  /** Throws where the export cannot be written, or the range not as it is. */
  checkWrite(what: string, range: Range): void {
    this.checkRange(what, range)
    if (this.has('READ_ONLY')) throw new NbdUsageError(`${what}: the export is read-only`, 'EPERM')
    const { minimum } = this.blockSizes
    if (range.offset % minimum !== 0 || !this.#isAlignedEnd(range.offset + range.length))
      throw new NbdUsageError(
        `${what} of ${range.length} bytes at ${range.offset}: the server takes multiples of ${minimum} bytes only` +
          (this.info.blockSizes ? '' : ' for all we know (if it takes others, say so by assumeBlockSizes)'),
      )
  }

  /** Throws where the export does not offer it. */
  require(what: string, flag: keyof typeof TransmissionFlag): void {
    if (!this.has(flag)) throw new NbdUsageError(`${what}: the server does not offer it`, 'ENOTSUP')
  }

  /** The part of a range that begins and ends at blocks; perhaps nothing. */
  inner({ offset, length }: Range): Range {
    const { minimum } = this.blockSizes
    const start = offset % minimum === 0 ? offset : alignDown(offset, minimum) + minimum
    const end = this.#isAlignedEnd(offset + length) ? offset + length : alignDown(offset + length, minimum)
    return { offset: start, length: Math.max(end - start, 0) }
  }

  /** The whole blocks that hold a range. */
  outer({ offset, length }: Range): Range {
    const { minimum } = this.blockSizes
    const start = alignDown(offset, minimum)
    return { offset: start, length: Math.min(alignDown(offset + length + minimum - 1, minimum), this.size) - start }
  }

  #isAlignedEnd(end: number) {
    return end % this.blockSizes.minimum === 0 || end === this.size
  }
}
