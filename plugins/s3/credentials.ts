// Where the keys come from: references, one for each, or a profile in a file as AWS's tools keep it. They are read when the target
// is opened, and again when the store no longer accepts them: so new ones take effect without a restart.

import { readFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { BadSettings, strerror } from '../../src/base/errors.ts'
import { objectionTo, readSecret } from '../../src/base/secret-reference.ts'
import type { S3Options } from './options.ts'
import type { Credentials } from './sign.ts'

export type CredentialOptions = Pick<S3Options, 'access-key' | 'secret-key' | 'session-token' | 'profile' | 'profile-file'>

export async function readCredentials(options: CredentialOptions): Promise<Credentials> {
  if (options.profile !== undefined) return readProfile(options['profile-file'] ?? defaultFile(), options.profile)
  const { 'access-key': access = '', 'secret-key': secret = '', 'session-token': token } = options
  return {
    // Which key it is, is no secret: it may stand there itself.
    accessKeyId: objectionTo(access) === undefined ? await readSecret(access, 'access-key') : access,
    secretAccessKey: await readSecret(secret, 'secret-key'),
    ...(token !== undefined && { sessionToken: await readSecret(token, 'session-token') }),
  }
}

const defaultFile = () => process.env['AWS_SHARED_CREDENTIALS_FILE'] ?? join(homedir(), '.aws/credentials')

async function readProfile(path: string, profile: string): Promise<Credentials> {
  const text = await readFile(path, 'utf8').catch((error: unknown) => {
    throw new BadSettings(`profile-file: ${path}: ${strerror(error)}`, { cause: error })
  })
  const values = sectionOf(text, profile)
  if (!values) throw new BadSettings(`profile: ${path} has no profile '${profile}'`)
  const { aws_access_key_id: accessKeyId, aws_secret_access_key: secretAccessKey, aws_session_token: sessionToken } = values
  if (!accessKeyId || !secretAccessKey)
    throw new BadSettings(
      `profile: '${profile}' in ${path} has no aws_access_key_id or no aws_secret_access_key; profiles that run a program or take on a role are not followed`,
    )
  return { accessKeyId, secretAccessKey, ...(sessionToken && { sessionToken }) }
}

/** The lines of `[name]`, in ~/.aws/config `[profile name]`; of several such sections the last value counts. */
function sectionOf(text: string, name: string): Record<string, string> | undefined {
  let values: Record<string, string> | undefined
  let inside = false
  for (const line of text.split(/\r?\n/)) {
    if (/^\s*[#;]/.test(line)) continue
    const section = /^\s*\[\s*(?:profile\s+)?([^\]]*?)\s*\]/.exec(line)?.[1]
    if (section !== undefined) {
      inside = section.replaceAll(/^["']|["']$/g, '') === name
      if (inside) values ??= {}
    } else if (inside) {
      const [, key, value] = /^([\w-]+)\s*=\s*(.*?)\s*$/.exec(line) ?? []
      if (key !== undefined) values![key.toLowerCase()] = value!
    }
  }
  return values
}
