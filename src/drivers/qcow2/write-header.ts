// Replaces an image's header so that a crash leaves the old one or the new one, and nothing between.
//
// A sector is written whole or not at all. So a new backing file name is written first, where neither header says anything is, and the
// header follows in one write, of which what matters stands in the first sector: the long feature name table is the last extension.

import { NoSpace } from '../../base/errors.ts'
import { alignUp } from '../../base/ranges.ts'
import { encodeHeader, type Header } from './header.ts'
import type { HostFile } from './host-file.ts'

/** Durable when it returns. `next.backingFileOffset` is set to where the name stands. Returns how far the new extensions reach. */
export async function writeHeader(file: HostFile, old: Header, next: Header): Promise<number> {
  const { name, extensionsEnd } = placeName(old, next)
  if (name) {
    await file.write(next.backingFileOffset, name)
    await file.below.flush()
  }
  const bytes = encodeHeader(next)
  await file.write(0, bytes)
  await file.below.flush()
  return extensionsEnd
}

/** Decides where the backing file's name goes; returns it when it must be written. */
function placeName(old: Header, next: Header): { name: Buffer | undefined; extensionsEnd: number } {
  const clusterSize = 2 ** next.clusterBits
  const extensionsEnd = encodeHeader(next).length
  if (extensionsEnd > clusterSize) throw new NoSpace(`the image's header has ${clusterSize} bytes, and needs ${extensionsEnd}`)
  if (next.backingFile === undefined) return { name: undefined, extensionsEnd }

  const name = Buffer.from(next.backingFile)
  const oldNameEnd = old.backingFile === undefined ? 0 : old.backingFileOffset + Buffer.byteLength(old.backingFile)
  if (next.backingFile === old.backingFile && old.backingFileOffset >= extensionsEnd) {
    next.backingFileOffset = old.backingFileOffset
    return { name: undefined, extensionsEnd }
  }
  // Behind everything old, where there is room; else between the extensions and the old name; else over the old one, which is all that is left.
  const behind = alignUp(Math.max(extensionsEnd, old.extensionsEnd, oldNameEnd), 8)
  const before = alignUp(Math.max(extensionsEnd, old.extensionsEnd), 8)
  if (behind + name.length <= clusterSize) next.backingFileOffset = behind
  else if (before + name.length <= clusterSize) next.backingFileOffset = before
  else next.backingFileOffset = extensionsEnd
  if (next.backingFileOffset + name.length > clusterSize)
    throw new NoSpace(`the image's header has no room for a backing file name of ${name.length} bytes`)
  return { name, extensionsEnd }
}
