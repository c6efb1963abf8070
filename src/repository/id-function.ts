// What a repository knows bytes by: HMAC-SHA256 with its id key where it is encrypted, so that nobody can tell what it holds by
// guessing; plain SHA-256 where it is not.

import { createHmac, hash } from 'node:crypto'

export function idFunction(idKey: Uint8Array | undefined) {
  return idKey
    ? (plain: Uint8Array) => createHmac('sha256', idKey).update(plain).digest()
    : (plain: Uint8Array) => hash('sha256', plain, 'buffer')
}
