// What a new LUKS volume is asked for in QMP's words (BlockdevCreateOptionsLUKS), and how it is made.

import { randomBytes, randomUUID } from 'node:crypto'
import { z } from 'zod'
import { InvalidParameter } from '../../base/errors.ts'
import { alignUp } from '../../base/ranges.ts'
import type { BlockIo, ImageCreation } from '../../block/driver.ts'
import { AES_KEYS, ciphers, hashes, ivs } from './algorithms.ts'
import { DIGEST_BYTES, encodeHeader, materialBytes, SALT_BYTES, SECTOR, SLOTS, STRIPES, type LuksHeader } from './header.ts'
import { digestOf, iterationsFor, lock, secretOf } from './key-slots.ts'

/** Key material begins on a page. */
const ALIGNMENT = 4096

const DEFAULT_MS = 2000

/** The digest of the master key needs less: there is nothing to guess. */
const DIGEST_SHARE = 8

const options = z.strictObject({
  size: z.int().min(0).meta({ qapi: 'uint64' }).describe('Of the disk, in bytes'),
  preallocation: z.enum(['off', 'metadata', 'falloc', 'full']).default('off'),
  'key-secret': z.string().optional().describe('Id of the secret object that becomes the password'),
  'cipher-alg': z.enum(['aes-128', 'aes-192', 'aes-256']).default('aes-256'),
  'cipher-mode': z.enum(ciphers).default('xts'),
  'ivgen-alg': z.enum(ivs).default('plain64'),
  'ivgen-hash-alg': z.enum(hashes).optional().describe('Of essiv; by default sha256'),
  'hash-alg': z.enum(hashes).default('sha256'),
  'iter-time': z.int().min(0).default(DEFAULT_MS).describe('Milliseconds that a try of a password takes, on this machine'),
})

type Wanted = z.output<typeof options>

export const luksCreation: ImageCreation<Wanted> = {
  options,
  files: { file: {} },
  async create(wanted, { file }, _filenames, lookUp) {
    const { bytes: password } = secretOf(wanted['key-secret'], lookUp)
    await createVolume(file!, wanted, password)
  },
}

async function createVolume(file: BlockIo, wanted: Wanted, password: Buffer) {
  const { key, header } = await newHeader(wanted)
  const [first] = header.slots
  const material = await lock(header, first!, key, password)
  await file.resize(0)
  await file.resize(header.payloadOffset + wanted.size)
  if (['falloc', 'full'].includes(wanted.preallocation) && wanted.size > 0)
    await file.zero({ offset: header.payloadOffset, length: wanted.size })
  await file.write(first!.keyOffset, material)
  await file.flush()
  // Last, so that what is a volume can be opened.
  await file.write(0, encodeHeader(header))
  await file.flush()
}

async function newHeader(wanted: Wanted): Promise<{ readonly key: Buffer; readonly header: LuksHeader }> {
  const { 'cipher-mode': cipher, 'ivgen-alg': iv, 'hash-alg': hash, 'iter-time': ms } = wanted
  const bytes = Number(wanted['cipher-alg'].slice('aes-'.length)) / 8
  const keyBytes = cipher === 'xts' ? 2 * bytes : bytes
  if (!AES_KEYS[cipher].includes(keyBytes)) throw new InvalidParameter(`there is no ${wanted['cipher-alg']} in ${cipher} mode`)
  if (wanted.size % SECTOR !== 0)
    throw new InvalidParameter(`an encrypted disk has whole sectors: its size must be a multiple of ${SECTOR}`)
  const key = randomBytes(keyBytes)
  const step = alignUp(materialBytes(keyBytes), ALIGNMENT)
  const digest = {
    digestSalt: randomBytes(SALT_BYTES),
    digestIterations: iterationsFor(ms / DIGEST_SHARE, hash, DIGEST_BYTES),
    hash,
  }
  const slots = Array.from({ length: SLOTS }, (_, index) => ({
    active: index === 0,
    iterations: index === 0 ? iterationsFor(ms, hash, keyBytes) : 0,
    salt: index === 0 ? randomBytes(SALT_BYTES) : Buffer.alloc(SALT_BYTES),
    keyOffset: ALIGNMENT + index * step,
    stripes: STRIPES,
  }))
  const header: LuksHeader = {
    ...digest,
    cipher,
    iv,
    ivHash: iv === 'essiv' ? (wanted['ivgen-hash-alg'] ?? 'sha256') : undefined,
    payloadOffset: ALIGNMENT + SLOTS * step,
    keyBytes,
    digest: await digestOf(key, digest),
    uuid: randomUUID(),
    slots,
  }
  return { key, header }
}
