// The feature name table, a header extension: what each feature bit is called, for programs that do not know the feature.

const ENTRY = 48
const NAME_AT = 2

const kinds = { incompatible: 0, compatible: 1, autoclear: 2 } as const

const names: readonly (readonly [kind: keyof typeof kinds, bit: number, name: string])[] = [
  ['incompatible', 0, 'dirty bit'],
  ['incompatible', 1, 'corrupt bit'],
  ['incompatible', 2, 'external data file'],
  ['incompatible', 3, 'compression type'],
  ['incompatible', 4, 'extended L2 entries'],
  ['compatible', 0, 'lazy refcounts'],
  ['autoclear', 0, 'bitmaps'],
  ['autoclear', 1, 'raw external data'],
]

/** The table with the features we know. */
export function featureNameTable(): Buffer {
  const table = Buffer.alloc(ENTRY * names.length)
  for (const [index, [kind, bit, name]] of names.entries()) {
    table[index * ENTRY] = kinds[kind]
    table[index * ENTRY + 1] = bit
    table.write(name, index * ENTRY + NAME_AT, 'latin1')
  }
  return table
}

/** Incompatible features that are not known here, as QEMU lists them: by the image's own names, the rest as a mask. */
export function unsupportedFeatures(bits: bigint, table: Buffer = Buffer.alloc(0)): string {
  const found: string[] = []
  let unnamed = bits
  for (let at = 0; at + ENTRY <= table.length; at += ENTRY) {
    const bit = 1n << BigInt(table[at + 1]! & 63)
    if (table[at] !== kinds.incompatible || (unnamed & bit) === 0n) continue
    found.push(table.toString('utf8', at + NAME_AT, at + ENTRY).replace(/\0.*$/s, ''))
    unnamed &= ~bit
  }
  if (unnamed !== 0n) found.push(`Unknown incompatible feature: ${unnamed.toString(16)}`)
  return found.join(', ')
}
