// Attachments of a restore point: small files, such as the machine's configuration. Four bytes before them keep them from being taken
// for the node of a tree with the same bytes, which would have the same id.

import { InvalidParameter } from '../base/errors.ts'
import { MAX_PLAIN } from './blob.ts'
import { Damaged } from './faults.ts'

const MAGIC = Buffer.from('SPa1')
export const MAX_ATTACHMENT = 4 << 20

export function attachmentBytes(bytes: Buffer) {
  if (bytes.length > Math.min(MAX_ATTACHMENT, MAX_PLAIN)) throw new InvalidParameter('an attachment has more than 4 MiB')
  const plain = Buffer.alloc(MAGIC.length + bytes.length)
  plain.set(MAGIC)
  plain.set(bytes, MAGIC.length)
  return plain
}

export function contentOf(plain: Buffer) {
  if (!plain.subarray(0, MAGIC.length).equals(MAGIC)) throw new Damaged('this is no attachment')
  return plain.subarray(MAGIC.length)
}
