// Encrypts sectors of 512 bytes, each for itself, by AES in XTS or CBC mode: what is the same in two sectors looks different.
//
// By Node's own calls each sector costs a cipher object. Where koffi is there its OpenSSL is called directly, with one for all.

import { createCipheriv, createDecipheriv, createHash } from 'node:crypto'
import { type Call, type Declare, nodeLibraryOr } from '../../base/node-library.ts'
import { copyBytes } from '../../base/copy-bytes.ts'
import type { CipherName, Hash, IvName } from './algorithms.ts'
import { SECTOR } from './header.ts'

export interface Encryption {
  readonly cipher: CipherName
  readonly iv: IvName
  readonly ivHash: Hash | undefined
}

/** In place; `sector` is the first one's number. Whole sectors only. */
export interface SectorCipher extends Disposable {
  encrypt(data: Buffer, sector: number): void
  decrypt(data: Buffer, sector: number): void
}

const IV_BYTES = 16

export function sectorCipher(how: Encryption, key: Buffer): Promise<SectorCipher> {
  return nodeLibraryOr(portableCipher(how, key), call => nativeCipher(how, key, call))
}

const nameOf = ({ cipher }: Encryption, key: Buffer) => `aes-${(cipher === 'xts' ? key.length / 2 : key.length) * 8}-${cipher}`

export function portableCipher(how: Encryption, key: Buffer): SectorCipher {
  const name = nameOf(how, key)
  const ivOf = ivsOf(how, key)
  const each = (data: Buffer, first: number, create: typeof createCipheriv | typeof createDecipheriv) => {
    for (let at = 0; at < data.length; at += SECTOR) {
      const part = data.subarray(at, at + SECTOR)
      const cipher = create(name, key, ivOf(first + at / SECTOR))
      cipher.setAutoPadding(false)
      copyBytes(cipher.update(part), part)
    }
  }
  return {
    encrypt: (data, sector) => each(data, sector, createCipheriv),
    decrypt: (data, sector) => each(data, sector, createDecipheriv),
    [Symbol.dispose]() {},
  }
}

function must(done: number) {
  if (done !== 1) throw new Error('AES has failed in OpenSSL')
}

function nativeCipher(how: Encryption, key: Buffer, call: Declare): SectorCipher {
  type Init = [unknown, unknown, null, Buffer | null, Buffer | null, number]
  const init: Call<Init, number> = call('int EVP_CipherInit_ex(void *, const void *, void *, const void *, const void *, int)')
  const update: Call<[unknown, Buffer, Buffer, Buffer, number], number> = call(
    'int EVP_CipherUpdate(void *, void *, void *, const void *, int)',
  )
  const padding: Call<[unknown, number], number> = call('int EVP_CIPHER_CTX_set_padding(void *, int)')
  const free: Call<[unknown], void> = call('void EVP_CIPHER_CTX_free(void *)')
  const create: Call<[], unknown> = call('void *EVP_CIPHER_CTX_new()')
  const find: Call<[string], unknown> = call('const void *EVP_get_cipherbyname(const char *)')
  const cipher = find(nameOf(how, key))
  if (cipher === null) throw new Error(`there is no ${nameOf(how, key)}`)
  const ivOf = ivsOf(how, key)
  const written = Buffer.alloc(4)
  const contexts = [1, 0].map(direction => {
    const context = create()
    must(init(context, cipher, null, key, Buffer.alloc(IV_BYTES), direction))
    must(padding(context, 0))
    return context
  })
  const each = (context: unknown, data: Buffer, first: number) => {
    for (let at = 0; at < data.length; at += SECTOR) {
      const part = data.subarray(at, at + SECTOR)
      must(init(context, null, null, null, ivOf(first + at / SECTOR), -1))
      must(update(context, part, written, part, SECTOR))
    }
  }
  return {
    encrypt: (data, sector) => each(contexts[0], data, sector),
    decrypt: (data, sector) => each(contexts[1], data, sector),
    [Symbol.dispose]: () => contexts.forEach(context => free(context)),
  }
}

/** What each sector begins with. Good until the next is asked for. */
function ivsOf({ iv, ivHash }: Encryption, key: Buffer): (sector: number) => Buffer {
  const plain = Buffer.alloc(IV_BYTES)
  const number = (sector: number) => {
    plain.writeUInt32LE(sector % 2 ** 32, 0)
    plain.writeUInt32LE(iv === 'plain' ? 0 : Math.floor(sector / 2 ** 32), 4)
    return plain
  }
  if (iv !== 'essiv') return number
  const salt = createHash(ivHash ?? 'sha256')
    .update(key)
    .digest()
  const name = `aes-${salt.length * 8}-ecb`
  return sector => createCipheriv(name, salt, null).update(number(sector))
}
