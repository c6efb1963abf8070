// Copies bytes between buffers, also in memory that threads share: there `set` goes byte by byte wherever the two are not aligned alike, as
// blobs in packs never are, and takes twenty times as long. `fill` is one memcpy.

/** @throws RangeError where there is no room */
export function copyBytes(from: Uint8Array, into: Buffer, at = 0): void {
  if (from.length > 0) into.fill(from, at, at + from.length)
}
