// Bytes for tests: repeatable from a seed, with zero areas among them, as disks have.

/** Mulberry32: small, fast, and good enough to make every mix-up of two ranges visible. */
export function generator(seed: number) {
  let state = seed | 0
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return (mixed ^ (mixed >>> 14)) >>> 0
  }
}

/** `length` bytes, none of them zero. */
export function randomBytes(length: number, seed: number) {
  const next = generator(seed)
  const words = new Uint32Array(Math.ceil(length / 4))
  for (let index = 0; index < words.length; index++) words[index] = next() | 0x01010101
  return Buffer.from(words.buffer, 0, length)
}

/** What a disk holds: such bytes, with about every third block of `block` bytes zero. */
export function diskContent(size: number, seed: number, block = 65536) {
  const content = randomBytes(size, seed)
  const next = generator(seed ^ 0x5eed)
  for (let offset = 0; offset < size; offset += block) if (next() % 3 === 0) content.subarray(offset, offset + block).fill(0)
  return content
}
