// The header of a LUKS volume, version 1 (cryptsetup's "LUKS1 On-Disk Format Specification"): from bytes, checked, and into bytes.
//
// Everything in it is a stranger's word until it is checked here: nothing is read, allocated or computed by a number that is not.

import { CorruptVolume, NotLuks } from './faults.ts'
import { NotSupported } from '../../base/errors.ts'
import { AES_KEYS, hashes, type CipherName, type Hash, type IvName } from './algorithms.ts'

export const SECTOR = 512
export const HEADER_BYTES = 592
export const SLOTS = 8
/** The only number there is; more of them only make the key material longer. */
export const STRIPES = 4000
export const SALT_BYTES = 32
export const DIGEST_BYTES = 20

const MAGIC = Buffer.from([0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe])
const ENABLED = 0x00ac71f3
const DISABLED = 0x0000dead
const SLOT_AT = 208
const SLOT_BYTES = 48
const NAME_BYTES = 32
const UUID_BYTES = 40

/** A minute or two of work; what asks for more is damaged, or means no good. */
const MOST_ITERATIONS = 2 ** 27

export interface KeySlot {
  readonly active: boolean
  readonly iterations: number
  readonly salt: Buffer
  /** Bytes. */
  readonly keyOffset: number
  readonly stripes: number
}

export interface LuksHeader {
  readonly cipher: CipherName
  readonly iv: IvName
  /** Of ESSIV. */
  readonly ivHash: Hash | undefined
  readonly hash: Hash
  /** Where the disk begins, in bytes. */
  readonly payloadOffset: number
  readonly keyBytes: number
  readonly digest: Buffer
  readonly digestSalt: Buffer
  readonly digestIterations: number
  readonly uuid: string
  readonly slots: readonly KeySlot[]
}

/** Bytes that a key of so many is kept in, split. */
export const materialBytes = (keyBytes: number) => keyBytes * STRIPES

/** @throws NotLuks, NotSupported, CorruptVolume */
export function decodeHeader(from: Buffer, fileSize: number): LuksHeader {
  if (from.length < HEADER_BYTES || !from.subarray(0, MAGIC.length).equals(MAGIC))
    throw new NotLuks('Volume is not in LUKS format')
  const version = from.readUInt16BE(6)
  if (version !== 1) throw new NotSupported(`LUKS version ${version} is not supported`)
  const keyBytes = from.readUInt32BE(108)
  const header = {
    ...cipherOf(nameAt(from, 8, NAME_BYTES, 'cipher name'), nameAt(from, 40, NAME_BYTES, 'cipher mode'), keyBytes),
    hash: hashOf(nameAt(from, 72, NAME_BYTES, 'hash')),
    payloadOffset: from.readUInt32BE(104) * SECTOR,
    keyBytes,
    digest: from.subarray(112, 112 + DIGEST_BYTES),
    digestSalt: from.subarray(132, 132 + SALT_BYTES),
    digestIterations: iterations(from.readUInt32BE(164), 'the master key'),
    uuid: nameAt(from, 168, UUID_BYTES, 'UUID'),
    slots: Array.from({ length: SLOTS }, (_, index) => slotAt(from, index)),
  }
  checkPlaces(header, fileSize)
  return header
}

export function encodeHeader(header: LuksHeader): Buffer {
  const into = Buffer.alloc(HEADER_BYTES)
  into.set(MAGIC)
  into.writeUInt16BE(1, 6)
  into.write('aes', 8, 'latin1')
  into.write(`${header.cipher}-${header.iv}${header.ivHash ? `:${header.ivHash}` : ''}`, 40, 'latin1')
  into.write(header.hash, 72, 'latin1')
  into.writeUInt32BE(header.payloadOffset / SECTOR, 104)
  into.writeUInt32BE(header.keyBytes, 108)
  into.set(header.digest, 112)
  into.set(header.digestSalt, 132)
  into.writeUInt32BE(header.digestIterations, 164)
  into.write(header.uuid, 168, 'latin1')
  for (const [index, { active, iterations, salt, keyOffset, stripes }] of header.slots.entries()) {
    const at = SLOT_AT + index * SLOT_BYTES
    into.writeUInt32BE(active ? ENABLED : DISABLED, at)
    into.writeUInt32BE(iterations, at + 4)
    into.set(salt, at + 8)
    into.writeUInt32BE(keyOffset / SECTOR, at + 40)
    into.writeUInt32BE(stripes, at + 44)
  }
  return into
}

function slotAt(from: Buffer, index: number): KeySlot {
  const at = SLOT_AT + index * SLOT_BYTES
  const state = from.readUInt32BE(at)
  if (state !== ENABLED && state !== DISABLED) throw new CorruptVolume(`Keyslot ${index} state (active/disable) is corrupted`)
  const active = state === ENABLED
  const stripes = from.readUInt32BE(at + 44)
  if (active && stripes !== STRIPES) throw new CorruptVolume(`Keyslot ${index} is corrupted (stripes ${stripes} != ${STRIPES})`)
  const count = from.readUInt32BE(at + 4)
  return {
    active,
    iterations: active ? iterations(count, `keyslot ${index}`) : count,
    salt: from.subarray(at + 8, at + 8 + SALT_BYTES),
    keyOffset: from.readUInt32BE(at + 40) * SECTOR,
    stripes,
  }
}

function iterations(count: number, whose: string) {
  if (count === 0 || count > MOST_ITERATIONS)
    throw new CorruptVolume(`the LUKS header asks for ${count} iterations for ${whose}; 1 to ${MOST_ITERATIONS} make sense`)
  return count
}

/** Nothing lies over anything else, nor past the end. */
function checkPlaces(
  { slots, keyBytes, payloadOffset }: Pick<LuksHeader, 'slots' | 'keyBytes' | 'payloadOffset'>,
  fileSize: number,
) {
  if (payloadOffset < HEADER_BYTES) throw new CorruptVolume('LUKS payload is overlapping with the header')
  if (payloadOffset > fileSize)
    throw new CorruptVolume(
      `the LUKS volume has been cut short: it has ${fileSize} bytes, and its data begin at ${payloadOffset}`,
    )
  const length = materialBytes(keyBytes)
  for (const [index, { active, keyOffset }] of slots.entries()) {
    if (!active) continue
    if (keyOffset < HEADER_BYTES) throw new CorruptVolume(`Keyslot ${index} is overlapping with the LUKS header`)
    if (keyOffset + length > payloadOffset) throw new CorruptVolume(`Keyslot ${index} is overlapping with the encrypted payload`)
    const over = slots.findIndex(
      (other, at) => at < index && other.active && other.keyOffset < keyOffset + length && keyOffset < other.keyOffset + length,
    )
    if (over !== -1) throw new CorruptVolume(`Keyslots ${over} and ${index} are overlapping in the header`)
  }
}

function nameAt(from: Buffer, at: number, length: number, what: string): string {
  const end = from.subarray(at, at + length).indexOf(0)
  if (end === -1) throw new CorruptVolume(`LUKS header ${what} is not NUL terminated`)
  return from.toString('latin1', at, at + end)
}

function hashOf(name: string): Hash {
  const hash = hashes.find(hash => hash === name)
  if (!hash) throw new NotSupported(`Hash algorithm '${printable(name)}' of the LUKS volume is not supported`)
  return hash
}

function cipherOf(name: string, mode: string, keyBytes: number): Pick<LuksHeader, 'cipher' | 'iv' | 'ivHash'> {
  const [, cipher, iv, ivHash] = /^(xts|cbc)-(plain|plain64|essiv)(?::(\w+))?$/.exec(mode) ?? []
  const sizes = cipher && AES_KEYS[cipher as CipherName]
  if (name !== 'aes' || !sizes || (iv === 'essiv') !== (ivHash !== undefined))
    throw new NotSupported(
      `LUKS volumes of '${printable(name)}-${printable(mode)}' are not supported; of aes-xts and aes-cbc they are`,
    )
  if (!sizes.includes(keyBytes)) throw new CorruptVolume(`Algorithm 'aes' with key size ${keyBytes} bytes not supported`)
  return { cipher: cipher as CipherName, iv: iv as IvName, ivHash: ivHash === undefined ? undefined : hashOf(ivHash) }
}

/** What is in an image must not reach a terminal as it is. */
const printable = (text: string) => text.replaceAll(/[^\x21-\x7e]/g, '?')
