// Gathers what a server says of an export, in INFO replies or in the answer to EXPORT_NAME, and judges it.

import { NbdProtocolError, NbdUsageError, peerText } from './errors.ts'
import { InfoType, MAX_STRING, TransmissionFlag, exportNameReply, infoBlockSize, infoExport, infoHeader } from './protocol.ts'
import type { BlockSizes, ExportInfo } from './session.ts'
import type { Struct } from './struct.ts'

export class ExportInfoReader {
  #export: { size: number; flags: number } | undefined
  #blockSizes: BlockSizes | undefined
  #canonicalName: string | undefined
  #description: string | undefined

  constructor(private readonly name: string) {}

  /** The data of one INFO reply. */
  info(data: Buffer): void {
    if (data.length < infoHeader.size) throw new NbdProtocolError(`a reply INFO of ${data.length} bytes`)
    switch (infoHeader.decode(data).type) {
      case InfoType.EXPORT:
        if (this.#export) throw new NbdProtocolError('INFO_EXPORT came twice')
        this.#export = exact(infoExport, data)
        return
      case InfoType.BLOCK_SIZE:
        this.#blockSizes = checkBlockSizes(exact(infoBlockSize, data))
        return
      case InfoType.NAME:
        this.#canonicalName = textOf(data)
        return
      case InfoType.DESCRIPTION:
        this.#description = textOf(data)
        return
      default: // of a later protocol
    }
  }

  exportName(data: Buffer): void {
    this.#export = exact(exportNameReply, data.subarray(0, exportNameReply.size))
  }

  /** Throws where the server left out what it must say. */
  result(option: string): ExportInfo {
    if (!this.#export) throw new NbdProtocolError(`the answer to ${option} has no INFO_EXPORT`)
    const { size, flags } = this.#export
    return {
      name: this.name,
      size,
      // Without HAS_FLAGS the others mean nothing.
      flags: flags & TransmissionFlag.HAS_FLAGS ? flags : 0,
      blockSizes: this.#blockSizes,
      canonicalName: this.#canonicalName,
      description: this.#description,
    }
  }
}

function exact<Table>(record: Struct<Table>, data: Buffer) {
  if (data.length !== record.size)
    throw new NbdProtocolError(`${record.name} of ${data.length} bytes, which should be ${record.size}`)
  try {
    return record.decode(data)
  } catch (error) {
    if (!(error instanceof RangeError)) throw error
    throw new NbdUsageError(`the export is too large for this client: its size ${error.message}`, 'EOVERFLOW')
  }
}

function textOf(data: Buffer) {
  if (data.length > infoHeader.size + MAX_STRING) throw new NbdProtocolError(`a reply INFO of ${data.length} bytes`)
  return peerText(data.subarray(infoHeader.size))
}

const isPowerOfTwo = (value: number) => value > 0 && Number.isInteger(Math.log2(value))

/** As the protocol's section on block size constraints has them. */
export const areBlockSizes = ({ minimum, preferred, maximum }: BlockSizes): boolean =>
  isPowerOfTwo(minimum) &&
  minimum <= 65_536 &&
  isPowerOfTwo(preferred) &&
  preferred >= minimum &&
  maximum >= preferred &&
  (maximum === 0xffff_ffff || maximum % minimum === 0)

function checkBlockSizes({ minimum, preferred, maximum }: BlockSizes): BlockSizes {
  if (!areBlockSizes({ minimum, preferred, maximum }))
    throw new NbdProtocolError(`block sizes that cannot be: minimum ${minimum}, preferred ${preferred}, maximum ${maximum}`)
  return { minimum, preferred, maximum }
}
