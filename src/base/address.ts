// Where bytes are in memory, for system calls that take structures with addresses in them.

import type Koffi from 'koffi'

/** Good as long as the bytes are held: what is behind an ArrayBuffer does not move. */
export type AddressOf = (bytes: ArrayBufferView) => number

export function addresses(koffi: typeof Koffi): AddressOf {
  const bases = new WeakMap<ArrayBufferLike, number>() // to ask costs more than to remember
  return ({ buffer, byteOffset }) => {
    let base = bases.get(buffer)
    if (base === undefined) bases.set(buffer, (base = Number(koffi.address(new Uint8Array(buffer)))))
    return base + byteOffset
  }
}
