// One encrypted volume for all who want one: to make one takes its time on purpose, and QEMU measures for seconds what that time is.

import { Secret } from '../../src/base/secret.ts'
import { luksCreation } from '../../src/drivers/luks/creation.ts'
import { MemoryNode } from './memory-node.ts'

let made: Promise<Buffer> | undefined

/** Its disk has 1 MiB, of anything, and its password is `a password`. */
export const encryptedVolume = () => (made ??= make())

async function make() {
  const file = new MemoryNode(Buffer.alloc(0))
  const wanted = luksCreation.options.parse({ size: 1 << 20, 'key-secret': 's', 'iter-time': 1 }) as never
  await luksCreation.create(wanted, { file }, {}, () => new Secret(Buffer.from('a password')))
  return file.bytes
}
