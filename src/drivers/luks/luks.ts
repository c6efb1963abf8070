// The luks driver: an encrypted volume, version 1 of the format, as cryptsetup and QEMU have it.
//
// Sectors are encrypted each for itself, so the disk is as far along as its file at any moment; nothing else has to be kept in step.

import { z } from 'zod'
import { NotSupported } from '../../base/errors.ts'
import { alignDown, pieces, type Range } from '../../base/ranges.ts'
import type { BlockDriver, BlockIo, BlockNode, Extent, Reopened, WriteFlags, ZeroFlags } from '../../block/driver.ts'
import type { NodeInfo } from '../../block/node-info.ts'
import { Permission } from '../../block/permissions.ts'
import { aesName } from './algorithms.ts'
import { luksCreation } from './creation.ts'
import { decodeHeader, HEADER_BYTES, SECTOR, type LuksHeader } from './header.ts'
import { secretOf, unlock } from './key-slots.ts'
import { sectorCipher, type SectorCipher } from './sector-cipher.ts'

/** What is encrypted without a pause for others. */
const PIECE_BYTES = 256 << 10

/** What it grows by is written, while guests wait. */
const MOST_GROWTH = 2 ** 30

const options = z.strictObject({
  'key-secret': z.string().optional().describe('Id of the secret object that is the password'),
})

export type LuksOptions = z.infer<typeof options>

export const luks: BlockDriver<LuksOptions> = {
  name: 'luks',
  options,
  creation: luksCreation,
  children: {
    file: {
      role: 'data',
      /** What it grows by is written. */
      permissions: ({ perm, shared }) => ({
        perm: perm | Permission.consistentRead | (perm & Permission.resize ? Permission.write : 0),
        shared,
      }),
    },
  },
  reopens: true,
  async open({ 'key-secret': id }, { children, lookUp }) {
    const { file } = children as { file: BlockIo }
    const { bytes: password } = secretOf(id, lookUp)
    const head = Buffer.alloc(Math.min(HEADER_BYTES, file.size))
    if (head.length > 0) await file.read(0, head)
    const header = decodeHeader(head, file.size)
    const key = await unlock(header, file, password)
    return new LuksNode(file, header, await sectorCipher(header, key))
  },
}

/** For tests that open many: what it takes to unlock a volume is much. */
export class LuksNode implements BlockNode {
  readonly alignment = SECTOR
  readonly maxTransfer = PIECE_BYTES

  constructor(
    private readonly file: BlockIo,
    private readonly header: LuksHeader,
    private readonly cipher: SectorCipher,
  ) {}

  get size() {
    return alignDown(Math.max(0, this.file.size - this.header.payloadOffset), SECTOR)
  }

  async read(offset: number, into: Buffer) {
    await this.file.read(this.header.payloadOffset + offset, into)
    this.cipher.decrypt(into, offset / SECTOR)
  }

  async write(offset: number, data: Buffer, flags?: WriteFlags) {
    const encrypted = Buffer.from(data)
    this.cipher.encrypt(encrypted, offset / SECTOR)
    await this.file.write(this.header.payloadOffset + offset, encrypted, flags)
  }

  async zero(range: Range, flags?: ZeroFlags) {
    if (flags?.fast) throw new NotSupported('zeroing an encrypted disk is as slow as writing it')
    for (const { offset, length } of pieces(range, PIECE_BYTES))
      await this.write(offset, Buffer.alloc(length), { fua: flags?.fua === true })
  }

  /** Which sectors nobody needs is nobody else's business. */
  async discard() {}

  flush() {
    return this.file.flush()
  }

  async *extents(range: Range): AsyncGenerator<Extent> {
    yield { ...range, allocated: true, zero: false }
  }

  /** What a file grows by are zeroes, which decrypt to anything: they are written over. */
  async resize(size: number) {
    const before = this.size
    if (size % SECTOR !== 0) throw new NotSupported(`an encrypted disk has whole sectors: ${size} is no multiple of ${SECTOR}`)
    if (size - before > MOST_GROWTH)
      throw new NotSupported(`an encrypted disk grows by ${MOST_GROWTH} bytes at a time at most, since they have to be written`)
    await this.file.resize(this.header.payloadOffset + size)
    if (size > before) await this.zero({ offset: before, length: size - before })
  }

  /** It is the file that is written or not. */
  async reopen(): Promise<Reopened> {
    return { commit() {}, async closeOld() {}, undo() {}, async closeNew() {} }
  }

  async info(): Promise<NodeInfo> {
    const { cipher, iv, ivHash, hash, keyBytes, payloadOffset, digestIterations, uuid, slots } = this.header
    const data = {
      'cipher-alg': aesName(cipher, keyBytes),
      'cipher-mode': cipher,
      'ivgen-alg': iv,
      ...(ivHash && { 'ivgen-hash-alg': ivHash }),
      'hash-alg': hash,
      'payload-offset': payloadOffset,
      'master-key-iters': digestIterations,
      uuid,
      slots: slots.map(({ active, iterations, stripes, keyOffset }) => ({
        active,
        ...(active && { iters: iterations, stripes }),
        'key-offset': keyOffset,
      })),
    }
    return { dirty: false, encrypted: true, formatSpecific: { type: 'luks', data } }
  }

  async [Symbol.asyncDispose]() {
    this.cipher[Symbol.dispose]()
  }
}
