// The keys of an encrypted repository, and the slots that keep the master key.
//
// The master key is 32 random bytes, made once. What is used comes from it by HKDF-SHA256:
//     id key        salt: the repository's id (16 bytes)   info: "stillpoint id"
//     session key   salt: the session's id (16 bytes)      info: "stillpoint session"
// A slot, keys/<uuid>, keeps the master key encrypted by a key that scrypt makes of a passphrase; there may be several slots.

import { createCipheriv, createDecipheriv, hash, hkdfSync, randomBytes, scrypt } from 'node:crypto'
import { promisify } from 'node:util'
import { z } from 'zod'
import { Damaged, WrongKey } from './faults.ts'
import { TAG } from './blob.ts'
import { idFunction } from './id-function.ts'
import { bytesOfUuid } from './uuid.ts'

export class RepositoryKeys {
  readonly idKey: Uint8Array | undefined
  readonly idOf: (plain: Uint8Array) => Buffer
  readonly #sessions = new Map<string, Uint8Array>()

  /** Without a master key: a repository that is not encrypted. */
  constructor(
    repository: string,
    private readonly master?: Uint8Array,
  ) {
    this.idKey = master && derive(master, repository, 'stillpoint id')
    this.idOf = idFunction(this.idKey)
  }

  /** The key of everything that a session wrote; undefined where nothing is encrypted. */
  ofSession(session: string): Uint8Array | undefined {
    if (!this.master) return undefined
    let key = this.#sessions.get(session)
    if (!key) this.#sessions.set(session, (key = derive(this.master, session, 'stillpoint session')))
    return key
  }
}

const derive = (master: Uint8Array, salt: string, info: string) =>
  new Uint8Array(hkdfSync('sha256', master, bytesOfUuid(salt), info, 32))

// --- slots ------------------------------------------------------------------------------------------------------------------------

const base64 = z.string().regex(/^[A-Za-z0-9+/]+=*$/)

/** The bounds keep a hostile slot from taking all memory, or all day: scrypt needs 128 * N * r bytes. */
export const slotSchema = z.object({
  kdf: z.literal('scrypt'),
  n: z
    .number()
    .int()
    .min(2)
    .max(2 ** 20),
  r: z.number().int().min(1).max(16),
  p: z.number().int().min(1).max(16),
  salt: base64,
  nonce: base64,
  /** AES-256-GCM of the master key, the tag behind it; the repository's id (16 bytes) is the associated data. */
  wrapped: base64,
  created: z.string(),
  label: z.string().optional(),
})
export type KeySlot = z.infer<typeof slotSchema>

/** About 64 MiB and 0.2 s. */
const COST = { n: 2 ** 16, r: 8, p: 1 }

const scryptKey = promisify<string, Buffer, number, { N: number; r: number; p: number; maxmem: number }, Buffer>(scrypt)

/** The last few, by what they are made of: whoever opens a repository again in this process need not wait again. */
const stretched = new Map<string, Promise<Buffer>>()
const MOST_STRETCHED = 16

function stretch(passphrase: string, salt: Buffer, { n, r, p }: { n: number; r: number; p: number }): Promise<Buffer> {
  const secret = passphrase.normalize('NFC')
  const name = hash('sha256', JSON.stringify([secret, salt.toString('base64'), n, r, p]))
  let key = stretched.get(name)
  if (!key) {
    key = scryptKey(secret, salt, 32, { N: n, r, p, maxmem: 256 * n * r + (1 << 20) })
    if (stretched.size >= MOST_STRETCHED) stretched.delete(stretched.keys().next().value!)
    stretched.set(name, key)
    key.catch(() => stretched.delete(name))
  }
  return key
}

export const newMasterKey = () => randomBytes(32)

export async function wrapKey(
  master: Uint8Array,
  passphrase: string,
  repository: string,
  { cost = COST, label }: { cost?: typeof COST; label?: string } = {},
): Promise<KeySlot> {
  const salt = randomBytes(16)
  const nonce = randomBytes(12)
  const cipher = createCipheriv('aes-256-gcm', await stretch(passphrase, salt, cost), nonce)
  cipher.setAAD(bytesOfUuid(repository))
  const wrapped = Buffer.concat([cipher.update(master), cipher.final(), cipher.getAuthTag()])
  return {
    kdf: 'scrypt',
    ...cost,
    salt: salt.toString('base64'),
    nonce: nonce.toString('base64'),
    wrapped: wrapped.toString('base64'),
    created: new Date().toISOString(),
    ...(label !== undefined && { label }),
  }
}

/** The master key, or WrongKey when the passphrase is not this slot's (or the slot was changed: the two look alike). */
export async function unwrapKey(slot: KeySlot, passphrase: string, repository: string): Promise<Buffer> {
  const wrapped = Buffer.from(slot.wrapped, 'base64')
  const nonce = Buffer.from(slot.nonce, 'base64')
  if (wrapped.length !== 32 + TAG || nonce.length !== 12 || (slot.n & (slot.n - 1)) !== 0)
    throw new Damaged('a key slot of the repository is damaged')
  const decipher = createDecipheriv('aes-256-gcm', await stretch(passphrase, Buffer.from(slot.salt, 'base64'), slot), nonce)
  decipher.setAAD(bytesOfUuid(repository))
  decipher.setAuthTag(wrapped.subarray(-TAG))
  const master = decipher.update(wrapped.subarray(0, -TAG))
  try {
    decipher.final()
  } catch (error) {
    throw new WrongKey('the key does not open this repository; is it that of another one?', { cause: error })
  }
  return master
}
