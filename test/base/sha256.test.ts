// SHA-256 of several pieces at once is that of each.

import t from 'tap'
import { HASHED_TOGETHER, portableSha256, threadSha256 } from '../../src/base/sha256.ts'
import fc from '../helpers/property.ts'

interface Piece {
  readonly length: number
  readonly offset: number
  readonly fill: number
}

const bytesOf = ({ length, offset, fill }: Piece) =>
  Buffer.from(new SharedArrayBuffer(offset + length))
    .fill(fill)
    .fill('middle', offset + (length >> 1))
    .subarray(offset)

t.test('pieces that are hashed together, with a key or without, get the digests that Node has for each', async t => {
  const sha256 = await threadSha256()
  t.same(sha256([]), [])
  const length = fc.oneof(fc.nat(200), fc.nat(70_000), fc.constantFrom(0, 55, 56, 63, 64, 119, 120, 65_536))
  const piece = fc.record({ length, offset: fc.nat(64), fill: fc.nat(255) })
  fc.assert(
    fc.property(
      fc.array(piece, { maxLength: 3 * HASHED_TOGETHER }),
      fc.option(fc.uint8Array({ maxLength: 100 }), { nil: undefined }),
      (pieces, key) => {
        const bytes = pieces.map(bytesOf)
        const [found, wanted] = [sha256(bytes, key), portableSha256(bytes, key)]
        if (!found.every((digest, at) => digest.equals(wanted[at]!)) || found.length !== wanted.length)
          throw new Error('a digest is another one')
      },
    ),
    { numRuns: 300 },
  )
})
