// What LUKS volumes are made of, by QEMU's names and by those in the header, which are the same for these.

export const hashes = ['sha1', 'sha224', 'sha256', 'sha384', 'sha512', 'ripemd160'] as const
export type Hash = (typeof hashes)[number]

export const ciphers = ['xts', 'cbc'] as const
export type CipherName = (typeof ciphers)[number]

export const ivs = ['plain', 'plain64', 'essiv'] as const
export type IvName = (typeof ivs)[number]

/** Bytes of AES keys: XTS has two of them in one, and OpenSSL has no XTS of 192 bits. */
export const AES_KEYS: Readonly<Record<CipherName, readonly number[]>> = { xts: [32, 64], cbc: [16, 24, 32] }

/** QEMU's QCryptoCipherAlgorithm. */
export const aesName = (cipher: CipherName, keyBytes: number) => {
  const bits = (cipher === 'xts' ? keyBytes / 2 : keyBytes) * 8
  return `aes-${bits}` as 'aes-128' | 'aes-192' | 'aes-256'
}
