// Secrets by reference, so that none stands in a configuration file: where to read one, and the reading.
//
//     file:/etc/stillpoint/secret    the file's text, without the line break at its end
//     credential:NAME                what systemd gave the service (LoadCredential=, systemd.exec(5))
//     env:NAME                       an environment variable

import { readFile } from 'node:fs/promises'
import { isAbsolute, join } from 'node:path'
import { BadSettings, strerror } from './errors.ts'

const WANTED = 'file:/PATH, credential:NAME or env:NAME'
const MAX_BYTES = 65536

/** Why the text is no reference, or undefined. What it says instead is perhaps the secret, and is not repeated. */
export function objectionTo(reference: string): string | undefined {
  const [, kind, name = ''] = /^(file|credential|env):(.*)$/s.exec(reference) ?? []
  if (kind === undefined) return `must say where the secret is, and not what it is: ${WANTED}`
  if (kind === 'file') return isAbsolute(name) ? undefined : 'file: needs an absolute path'
  return /^[\w.@-]+$/.test(name) && name !== '.' && name !== '..' ? undefined : `${kind}: needs a name behind it`
}

/** Whether a text says where something stands, and is not the thing itself. */
export const isReference = (text: string) => /^(file|credential|env):/.test(text)

/** `what` is how messages name the setting. Throws BadSettings where there is no secret. */
export async function readSecret(reference: string, what: string): Promise<string> {
  const objection = objectionTo(reference)
  if (objection !== undefined) throw new BadSettings(`${what}: ${objection}`)
  const colon = reference.indexOf(':')
  const secret = await readFrom(reference.slice(0, colon), reference.slice(colon + 1), what)
  if (secret === '') throw new BadSettings(`${what}: there is nothing in ${reference}`)
  return secret
}

async function readFrom(kind: string, name: string, what: string) {
  if (kind === 'env') {
    const value = process.env[name]
    if (value === undefined)
      throw new BadSettings(`${what}: the environment has no ${name}; set it for whoever runs this, the daemon too`)
    return value.trim()
  }
  const folder = process.env['CREDENTIALS_DIRECTORY']
  if (kind === 'credential' && folder === undefined)
    throw new BadSettings(
      `${what}: systemd gave no credentials; say LoadCredential=${name}:/PATH in the service, or use file:/PATH`,
    )
  const path = kind === 'file' ? name : join(folder!, name)
  try {
    const text = await readFile(path)
    if (text.length > MAX_BYTES) throw new BadSettings(`${what}: ${path} is too long for a secret`)
    return text.toString().trim()
  } catch (error) {
    if (error instanceof BadSettings) throw error
    throw new BadSettings(`${what}: ${path}: ${strerror(error)}`, { cause: error })
  }
}
