// Keys as paths: a part of a key is a name in a folder, with what file systems treat in their own way written as %XX.

import { InvalidParameter } from '../../src/base/errors.ts'
import { checkKey } from '../../src/push/target.ts'

/** The longest name that file systems take. */
const MAX_NAME = 255

/** The path below the root. A name never begins with a dot: those are the target's own. */
export function pathOf(key: string) {
  checkKey(key)
  return key
    .split('/')
    .map(part => {
      const name = nameOf(part)
      if (name.length > MAX_NAME) throw new InvalidParameter(`the key '${key}' has a part that is too long for a file's name`)
      return name
    })
    .join('/')
}

const nameOf = (part: string) =>
  part.replaceAll(/[^A-Za-z0-9._~!$&'()+,;=@-]|^\./gu, character =>
    [...Buffer.from(character)].map(byte => `%${byte.toString(16).toUpperCase().padStart(2, '0')}`).join(''),
  )

/** The part of a key that a name stands for; undefined for a name that we never give (somebody else's file, or a temporary one). */
export function partOf(name: string): string | undefined {
  try {
    const part = decodeURIComponent(name)
    return nameOf(part) === name ? part : undefined
  } catch (error) {
    if (error instanceof URIError) return undefined
    throw error
  }
}
