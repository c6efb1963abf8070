// One count in a refcount block: 1 to 64 bits, the narrow ones from the low bits of a byte up.

export type ReadCount = (bytes: Buffer, index: number) => number
export type WriteCount = (bytes: Buffer, index: number, count: number) => void

/** Reads of 64 bits may be inexact above 2^53, and never smaller than that then. */
export function readerFor(bits: number): ReadCount {
  switch (bits) {
    case 8:
      return (bytes, index) => bytes[index]!
    case 16:
      return (bytes, index) => bytes.readUInt16BE(index * 2)
    case 32:
      return (bytes, index) => bytes.readUInt32BE(index * 4)
    case 64:
      return (bytes, index) => bytes.readUInt32BE(index * 8) * 2 ** 32 + bytes.readUInt32BE(index * 8 + 4)
    default: {
      const perByte = 8 / bits
      const mask = 2 ** bits - 1
      return (bytes, index) => (bytes[Math.floor(index / perByte)]! >>> ((index % perByte) * bits)) & mask
    }
  }
}

export function writerFor(bits: number): WriteCount {
  switch (bits) {
    case 8:
      return (bytes, index, count) => void (bytes[index] = count)
    case 16:
      return (bytes, index, count) => void bytes.writeUInt16BE(count, index * 2)
    case 32:
      return (bytes, index, count) => void bytes.writeUInt32BE(count, index * 4)
    case 64:
      return (bytes, index, count) => {
        bytes.writeUInt32BE(Math.floor(count / 2 ** 32), index * 8)
        bytes.writeUInt32BE(count % 2 ** 32, index * 8 + 4)
      }
    default: {
      const perByte = 8 / bits
      const mask = 2 ** bits - 1
      return (bytes, index, count) => {
        const at = Math.floor(index / perByte)
        const shift = (index % perByte) * bits
        bytes[at] = (bytes[at]! & ~(mask << shift)) | (count << shift)
      }
    }
  }
}
