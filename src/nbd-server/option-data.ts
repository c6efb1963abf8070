// The data of one option, read field by field. What is left of it is counted here and nowhere else.

import { MAX_STRING, OptionReply } from 'nbd-client-ts/protocol'
import { Fault } from '../base/errors.ts'

/** An option that is answered with an error; the negotiation goes on. */
export class OptionRefused extends Fault {
  constructor(
    readonly reply: number,
    message: string,
  ) {
    super(message)
  }
}

const invalid = (message: string) => new OptionRefused(OptionReply.ERR_INVALID, message)

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

export class OptionData {
  #at = 0

  constructor(private readonly bytes: Buffer) {}

  get left() {
    return this.bytes.length - this.#at
  }

  u16() {
    return this.bytes.readUInt16BE(this.#take(2, 'a number'))
  }

  u32() {
    return this.bytes.readUInt32BE(this.#take(4, 'a number'))
  }

  /** A length in 32 bits, and so many bytes. */
  counted(what: string) {
    const length = this.u32()
    return this.bytes.subarray(this.#take(length, what), this.#at)
  }

  /** The name of an export: a length in 32 bits, and so many bytes of UTF-8. */
  name() {
    return decodeName(this.counted('the export name'))
  }

  /** Nothing must follow. */
  end() {
    if (this.left > 0) throw invalid(`${this.left} bytes behind the end of the option's data`)
  }

  #take(length: number, what: string) {
    if (length > this.left) throw invalid(`the option's data end before ${what} does`)
    const at = this.#at
    this.#at += length
    return at
  }
}

export function decodeName(bytes: Buffer) {
  if (bytes.length > MAX_STRING)
    throw new OptionRefused(OptionReply.ERR_TOO_BIG, `the export name is longer than ${MAX_STRING} bytes`)
  if (bytes.includes(0)) throw new OptionRefused(OptionReply.ERR_INVALID, 'the export name has a NUL in it')
  try {
    return utf8.decode(bytes)
  } catch (error) {
    throw new OptionRefused(OptionReply.ERR_INVALID, `the export name is not UTF-8: ${String(error)}`)
  }
}

/** A peer's text as part of a message of ours: short, and without anything that could be mistaken. */
export const quoted = (text: string) =>
  `'${(text.length > 64 ? `${text.slice(0, 64)}...` : text).replaceAll(/[\p{C}'\\]/gu, '?')}'`
