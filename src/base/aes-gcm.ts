// AES-256-GCM from memory to memory, with a nonce of 12 bytes and a tag of 16.
//
// Node's own calls make memory for what comes out, which is garbage at once: with chunks of 256 KiB that is what encryption costs, not
// the encryption. The same library, which Node's program exports, is called without that where the optional package koffi is there.

import { createCipheriv, createDecipheriv } from 'node:crypto'
import { copyBytes } from './copy-bytes.ts'
import { type Call, type Declare, nodeLibraryOr } from './node-library.ts'

export interface Sealing {
  /** 32 bytes. */
  readonly key: Uint8Array
  /** 12 bytes. */
  readonly nonce: Uint8Array
  /** What is authenticated beside the text. */
  readonly header: Uint8Array
}

export interface AesGcm {
  /** Encrypts in place; the tag goes into `tag`. */
  encrypt(sealing: Sealing, text: Buffer, tag: Buffer): void
  /** The text, in memory that is the caller's until the next call; undefined where any of it was changed. */
  decrypt(sealing: Sealing, ciphertext: Buffer, tag: Buffer): Buffer | undefined
}

const NAME = 'aes-256-gcm'
const TAG = 16

/** By Node's own calls. */
export const portableGcm: AesGcm = {
  encrypt({ key, nonce, header }, text, tag) {
    const cipher = createCipheriv(NAME, key, nonce)
    cipher.setAAD(header)
    copyBytes(cipher.update(text), text)
    cipher.final()
    tag.set(cipher.getAuthTag())
  },
  decrypt({ key, nonce, header }, ciphertext, tag) {
    const decipher = createDecipheriv(NAME, key, nonce, { authTagLength: TAG })
    decipher.setAAD(header)
    decipher.setAuthTag(tag)
    const text = decipher.update(ciphertext)
    try {
      decipher.final()
    } catch {
      return undefined // that is all it can mean
    }
    return text
  },
}

/** The fastest there is, for the thread that asks. */
export const threadGcm = (): Promise<AesGcm> => nodeLibraryOr(portableGcm, bind)

/** Of OpenSSL's evp.h. */
const GET_TAG = 0x10
const SET_TAG = 0x11

function must(done: number) {
  if (done !== 1) throw new Error('AES-256-GCM has failed in OpenSSL')
}

function bind(call: Declare): AesGcm {
  type Init = [unknown, unknown, null, Uint8Array, Uint8Array]
  type Update = [unknown, Buffer | null, Buffer, Uint8Array, number]
  const of = (name: 'Encrypt' | 'Decrypt') => ({
    init: call<Init, number>(`int EVP_${name}Init_ex(void *, const void *, void *, const void *, const void *)`),
    update: call<Update, number>(`int EVP_${name}Update(void *, void *, void *, const void *, int)`),
    final: call<[unknown, Buffer, Buffer], number>(`int EVP_${name}Final_ex(void *, void *, void *)`),
  })
  const [encryption, decryption] = [of('Encrypt'), of('Decrypt')]
  const control: Call<[unknown, number, number, Buffer], number> = call('int EVP_CIPHER_CTX_ctrl(void *, int, int, void *)')
  const cipher: unknown = call('const void *EVP_aes_256_gcm()')()
  const context: unknown = call('void *EVP_CIPHER_CTX_new()')()
  if (cipher === null || context === null) throw new Error('there is no AES-256-GCM')
  /** What OpenSSL says it wrote, which is what we know. */
  const count = Buffer.alloc(4)
  const rest = Buffer.alloc(TAG)
  let room = Buffer.alloc(0)
  const begin = ({ init, update }: ReturnType<typeof of>, { key, nonce, header }: Sealing) => {
    if (key.length !== 32 || nonce.length !== 12) throw new RangeError('AES-256-GCM here has a key of 32 bytes and a nonce of 12')
    must(init(context, cipher, null, key, nonce))
    must(update(context, null, count, header, header.length))
  }
  return {
    encrypt(sealing, text, tag) {
      begin(encryption, sealing)
      must(encryption.update(context, text, count, text, text.length))
      must(encryption.final(context, rest, count))
      must(control(context, GET_TAG, TAG, tag.subarray(0, TAG)))
    },
    decrypt(sealing, ciphertext, tag) {
      if (tag.length !== TAG) return undefined
      if (room.length < ciphertext.length) room = Buffer.allocUnsafeSlow(ciphertext.length)
      const text = room.subarray(0, ciphertext.length)
      begin(decryption, sealing)
      must(decryption.update(context, text, count, ciphertext, ciphertext.length))
      must(control(context, SET_TAG, TAG, tag))
      return decryption.final(context, rest, count) === 1 ? text : undefined
    },
  }
}
