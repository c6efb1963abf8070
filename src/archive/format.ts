// What a portable archive holds: a ZIP file that any unzip opens.
//
//     archive.json                        what it is, and the manifests of its restore points
//     <machine>/<time>-<id>/<disk>.list   where the pieces of a disk are: a line for each, in order
//     <machine>/<time>-<id>/<disk>/<at>   a piece: bytes of the disk from there on, stored or deflated
//     <machine>/<time>-<id>/attached/<n>  the n-th attachment
//
// A line of a list is `offset length sha256 entry`, with the numbers in decimal and the name of an entry last: perhaps one of an earlier
// restore point, where the bytes are the same. What no line names is zero. docs/repository-format.md tells others.

import { z } from 'zod'
import { endOf, type Range } from '../base/ranges.ts'
import { manifestSchema } from '../repository/manifest.ts'
import { BadArchive } from './faults.ts'

export const INDEX = 'archive.json'
export const KIND = 'stillpoint-archive'
const FORMAT = 1

export const archiveSchema = z.object({
  kind: z.literal(KIND),
  format: z.literal(FORMAT),
  created: z.iso.datetime(),
  points: z.array(
    z.object({
      /** Of the folder that its entries are in. */
      folder: z.string().min(1),
      manifest: manifestSchema,
    }),
  ),
})
export type ArchiveIndex = z.infer<typeof archiveSchema>

export const newIndex = (points: ArchiveIndex['points']): ArchiveIndex => ({
  kind: KIND,
  format: FORMAT,
  created: new Date().toISOString(),
  points,
})

/** ASCII that every unzip can make a file of; different names stay different. */
export const safePart = (name: string) =>
  [...Buffer.from(name)]
    .map((byte, at) => {
      const character = String.fromCharCode(byte)
      return /[\w-]/.test(character) || (character === '.' && at > 0)
        ? character
        : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`
    })
    .join('')

export const listName = (folder: string, disk: string) => `${folder}/${safePart(disk)}.list`
export const pieceName = (folder: string, disk: string, offset: number) =>
  `${folder}/${safePart(disk)}/${String(offset).padStart(16, '0')}`
export const attachmentName = (folder: string, number: number) => `${folder}/attached/${number + 1}`

/** Bytes of an archive's index, and of the list of a disk: of 64 TiB, if it must be. */
export const MAX_INDEX = 64 << 20
export const MAX_LIST = 256 << 20

const MIN_PIECE = 4 << 20
export const MAX_PIECE = 64 << 20
/** More pieces than this make the directory unwieldy; large disks have larger ones. */
const PIECES = 65536

/** Pieces are parts of windows of this many bytes, a power of two. */
export function windowOf(size: number) {
  let window = MIN_PIECE
  while (window < MAX_PIECE && size / window > PIECES) window *= 2
  return window
}

export interface Piece extends Range {
  /** Of its bytes, in hex. */
  readonly sha256: string
  readonly entry: string
}

export const lineOf = ({ offset, length, sha256, entry }: Piece) => `${offset} ${length} ${sha256} ${entry}\n`

/** @throws BadArchive for what no export wrote: pieces that overlap, or reach behind the end */
export function parseList(text: string, size: number, what: string): Piece[] {
  const pieces: Piece[] = []
  let end = 0
  for (let at = 0; at < text.length;) {
    const stop = text.indexOf('\n', at)
    const line = text.slice(at, stop < 0 ? undefined : stop)
    const [, offset, length, sha256, entry] = /^(\d{1,16}) (\d{1,9}) ([\da-f]{64}) (\S+)$/.exec(line) ?? []
    const piece = { offset: Number(offset), length: Number(length), sha256: sha256!, entry: entry! }
    if (stop < 0 || !entry || piece.offset < end || piece.length < 1 || piece.length > MAX_PIECE || endOf(piece) > size)
      throw new BadArchive(`${what} is not as an export writes it, from byte ${at} on`)
    pieces.push(piece)
    end = endOf(piece)
    at = stop + 1
  }
  return pieces
}
