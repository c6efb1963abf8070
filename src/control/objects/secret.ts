// QMP's secret: a password or key, from the command itself or from a file.

import { createDecipheriv } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { z } from 'zod'
import { InvalidParameter, strerror } from '../../base/errors.ts'
import { asSecret, Secret } from '../../base/secret.ts'
import type { Objects } from '../../block/objects.ts'
import { objectType } from './object-type.ts'

/** A mistake in the file's name must not make us read a disk. */
const MOST_BYTES = 1 << 20

export const secretObject = objectType({
  name: 'secret',
  properties: {
    data: z.string().optional(),
    file: z.string().optional(),
    format: z.enum(['raw', 'base64']).optional().describe('Of the data, or of what is in the file; by default raw'),
    keyid: z.string().optional().describe('Id of the secret, of 32 bytes, that it is encrypted with, by AES in CBC mode'),
    iv: z.string().optional().describe('What the encryption began with, 16 bytes in base64'),
    loaded: z.boolean().optional().describe('Accepted'),
  },
  propertyTypes: { format: 'QCryptoSecretFormat' },
  defaults: { format: 'raw', loaded: true },
  async create({ data, file, format = 'raw', keyid, iv }, objects) {
    if (data !== undefined && file !== undefined) throw new InvalidParameter("'file' and 'data' are mutually exclusive")
    if (data === undefined && file === undefined) throw new InvalidParameter("Either 'file' or 'data' must be provided")
    const bytes = data === undefined ? await read(file!) : Buffer.from(data)
    if (keyid === undefined) return new Secret(format === 'raw' ? bytes : decode(bytes.toString('latin1')))
    return new Secret(decrypt(bytes, { key: keyOf(objects, keyid), iv, format }))
  },
})

interface Encryption {
  readonly key: Buffer
  readonly iv: string | undefined
  readonly format: 'raw' | 'base64'
}

const KEY_BYTES = 32
const BLOCK_BYTES = 16

function keyOf(objects: Objects, id: string) {
  const { bytes } = asSecret(objects.find(id), id)
  if (bytes.length !== KEY_BYTES)
    throw new InvalidParameter(`Key should be ${KEY_BYTES} bytes in length not ${bytes.length}: that is what secret '${id}' has`)
  return bytes
}

/** As libvirt hands secrets over (QEMU's qcrypto_secret_decrypt). */
function decrypt(encrypted: Buffer, { key, iv, format }: Encryption) {
  if (iv === undefined) throw new InvalidParameter('IV is required to decrypt secret')
  const start = decode(iv)
  if (start.length !== BLOCK_BYTES) throw new InvalidParameter(`IV should be ${BLOCK_BYTES} bytes in length not ${start.length}`)
  const cipher = createDecipheriv('aes-256-cbc', key, start)
  const bytes = format === 'base64' ? decode(encrypted.toString('latin1')) : encrypted
  try {
    return Buffer.concat([cipher.update(bytes), cipher.final()])
  } catch (error) {
    throw new InvalidParameter('the secret cannot be decrypted: it was encrypted with another key, or is damaged', {
      cause: error,
    })
  }
}

async function read(file: string) {
  let bytes: Buffer
  try {
    bytes = await readFile(file)
  } catch (error) {
    throw new InvalidParameter(`Unable to read ${file}: Failed to open file “${file}”: ${strerror(error)}`, { cause: error })
  }
  if (bytes.length > MOST_BYTES)
    throw new InvalidParameter(`${file} has ${bytes.length} bytes, and a secret has at most ${MOST_BYTES}`)
  return bytes
}

function decode(text: string) {
  if (!/^[A-Za-z0-9+/=\n]*$/.test(text)) throw new InvalidParameter('Base64 data contains invalid characters')
  return Buffer.from(text, 'base64')
}
