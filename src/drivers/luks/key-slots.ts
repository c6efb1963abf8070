// The key slots of a LUKS volume: its master key, once for each password, encrypted with what PBKDF2 makes of that.

import { pbkdf2, pbkdf2Sync, randomBytes, timingSafeEqual } from 'node:crypto'
import { promisify } from 'node:util'
import { InvalidParameter } from '../../base/errors.ts'
import { alignUp } from '../../base/ranges.ts'
import { asSecret, type Secret } from '../../base/secret.ts'
import type { BlockIo } from '../../block/driver.ts'
import { merge, split } from './af-splitter.ts'
import type { Hash } from './algorithms.ts'
import { WrongPassword } from './faults.ts'
import { DIGEST_BYTES, materialBytes, SALT_BYTES, SECTOR, STRIPES, type LuksHeader } from './header.ts'
import { sectorCipher } from './sector-cipher.ts'

/** In a thread of its own. */
const derive = promisify(pbkdf2)

/** Fewer are no hindrance to anybody. */
const LEAST_ITERATIONS = 1000

/** So many are measured first; twice as many, and so on, where that was over too soon to be a measure. */
const SAMPLE_ITERATIONS = 10_000
const SAMPLE_MS = 2

/** @throws InvalidParameter, in QEMU's words */
export function secretOf(id: string | undefined, lookUp: (id: string) => unknown): Secret {
  if (id === undefined) throw new InvalidParameter("Parameter 'key-secret' is required for cipher")
  return asSecret(lookUp(id), id)
}

/** The master key, by the first slot that the password opens. @throws WrongPassword */
export async function unlock(header: LuksHeader, file: BlockIo, password: Buffer): Promise<Buffer> {
  for (const { active, salt, iterations, keyOffset } of header.slots) {
    if (!active) continue
    const slotKey = await derive(password, salt, iterations, header.keyBytes, header.hash)
    const material = Buffer.alloc(materialBytes(header.keyBytes))
    await file.read(keyOffset, material)
    using cipher = await sectorCipher(header, slotKey)
    const whole = Buffer.concat([material], alignUp(material.length, SECTOR))
    cipher.decrypt(whole, 0)
    const key = merge(whole.subarray(0, material.length), STRIPES, header.hash)
    if (timingSafeEqual(await digestOf(key, header), header.digest)) return key
  }
  throw new WrongPassword('Invalid password, cannot unlock any keyslot')
}

/** By which a key is known to be the right one. */
export const digestOf = (
  key: Buffer,
  { digestSalt, digestIterations, hash }: Pick<LuksHeader, 'digestSalt' | 'digestIterations' | 'hash'>,
) => derive(key, digestSalt, digestIterations, DIGEST_BYTES, hash)

/** What stands in the slot's place. */
export async function lock(header: LuksHeader, slot: LuksHeader['slots'][number], key: Buffer, password: Buffer) {
  const slotKey = await derive(password, slot.salt, slot.iterations, header.keyBytes, header.hash)
  using cipher = await sectorCipher(header, slotKey)
  const material = split(key, STRIPES, header.hash)
  const whole = Buffer.concat([material], alignUp(material.length, SECTOR))
  cipher.encrypt(whole, 0)
  return whole
}

/** How many take so long here: time of this thread, so that it does not matter what else goes on. */
export function iterationsFor(ms: number, hash: Hash, keyBytes: number): number {
  for (let sample = SAMPLE_ITERATIONS; ; sample *= 2) {
    const before = process.threadCpuUsage()
    pbkdf2Sync('a password', randomBytes(SALT_BYTES), sample, keyBytes, hash)
    // Both together: which of the two it was the kernel guesses, by what a tick has found.
    const { user, system } = process.threadCpuUsage(before)
    const took = (user + system) / 1000
    if (took >= SAMPLE_MS) return Math.max(LEAST_ITERATIONS, Math.round((sample * ms) / took))
  }
}
