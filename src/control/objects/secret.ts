// QMP's secret: a password or key, from the command itself or from a file.

import { readFile } from 'node:fs/promises'
import { z } from 'zod'
import { InvalidParameter, strerror } from '../../base/errors.ts'
import { objectType } from './object-type.ts'

/** A mistake in the file's name must not make us read a disk. */
const MOST_BYTES = 1 << 20

/** The bytes are nobody's to see by accident: not in a log, and not in an answer. */
export class Secret {
  readonly #bytes: Buffer

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  get bytes() {
    return this.#bytes
  }
}

export const secretObject = objectType({
  name: 'secret',
  properties: {
    data: z.string().optional(),
    file: z.string().optional(),
    format: z.enum(['raw', 'base64']).optional().describe('Of the data, or of what is in the file; by default raw'),
  },
  async create({ data, file, format = 'raw' }) {
    if (data !== undefined && file !== undefined) throw new InvalidParameter("'file' and 'data' are mutually exclusive")
    if (data === undefined && file === undefined) throw new InvalidParameter("Either 'file' or 'data' must be provided")
    const bytes = data === undefined ? await read(file!) : Buffer.from(data)
    return new Secret(format === 'raw' ? bytes : decode(bytes.toString('latin1')))
  },
})

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
