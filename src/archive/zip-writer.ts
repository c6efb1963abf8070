// Writes a ZIP file from front to back (PKWARE's APPNOTE.TXT 6.3): local headers have sizes and CRC, so nobody needs to come back to them,
// and the directory at the end is ZIP64 where it has to be. Names are ASCII.

export const Method = { stored: 0, deflated: 8 } as const

export interface ZipMember {
  readonly name: string
  /** As they stand in the file. */
  readonly stored: Uint8Array
  readonly method: number
  /** Of the plain bytes. */
  readonly crc: number
  readonly size: number
}

const MAX16 = 0xffff
const MAX32 = 0xffffffff
const LOCAL = 30
const CENTRAL = 46
/** What a reader has to know: 2.0 deflate, 4.5 ZIP64. */
const PLAIN_VERSION = 20
const ZIP64_VERSION = 45
/** Made on Unix, so that `unzip` gives the files the mode that stands in the directory. */
const MADE_BY = (3 << 8) | ZIP64_VERSION
const MODE = 0o100600 << 16
const ZIP64 = 1

/** Date and time as DOS has them, in UTC. */
function dosTime(time: Date) {
  const date = ((Math.max(1980, time.getUTCFullYear()) - 1980) << 9) | ((time.getUTCMonth() + 1) << 5) | time.getUTCDate()
  const clock = (time.getUTCHours() << 11) | (time.getUTCMinutes() << 5) | (time.getUTCSeconds() >> 1)
  return (date * 0x10000 + clock) >>> 0
}

export interface ZipOutput {
  /** From this place in the bytes so many, to that one in the file; perhaps fewer. */
  write(bytes: Uint8Array, offset: number, length: number, position: number): Promise<{ readonly bytesWritten: number }>
}

export class ZipWriter {
  readonly #directory: Buffer[] = []
  readonly #time: number
  #at = 0

  /** `start`: where in the file it begins; tests put it behind 4 GiB. */
  constructor(
    private readonly file: ZipOutput,
    time: Date,
    start = 0,
  ) {
    this.#time = dosTime(time)
    this.#at = start
  }

  get bytes() {
    return this.#at
  }

  async add({ name, stored, method, crc, size }: ZipMember) {
    const local = Buffer.alloc(LOCAL + name.length)
    local.writeUInt32LE(0x04034b50, 0)
    this.#common({ method, crc, size, stored }, name, local, 4)
    local.write(name, LOCAL, 'ascii')
    this.#directory.push(this.#entry({ method, crc, size, stored, name }))
    await this.#write(local)
    await this.#write(stored)
  }

  /** The directory; afterwards the file is complete. */
  async finish() {
    const start = this.#at
    const count = this.#directory.length
    for (let at = 0; at < count; at += 1024) await this.#write(Buffer.concat(this.#directory.slice(at, at + 1024)))
    const size = this.#at - start
    const parts: Buffer[] = []
    if (count >= MAX16 || size >= MAX32 || start >= MAX32) {
      const end64 = Buffer.alloc(56)
      end64.writeUInt32LE(0x06064b50, 0)
      end64.writeBigUInt64LE(44n, 4)
      end64.writeUInt16LE(MADE_BY, 12)
      end64.writeUInt16LE(ZIP64_VERSION, 14)
      end64.writeBigUInt64LE(BigInt(count), 24)
      end64.writeBigUInt64LE(BigInt(count), 32)
      end64.writeBigUInt64LE(BigInt(size), 40)
      end64.writeBigUInt64LE(BigInt(start), 48)
      const locator = Buffer.alloc(20)
      locator.writeUInt32LE(0x07064b50, 0)
      locator.writeBigUInt64LE(BigInt(this.#at), 8)
      locator.writeUInt32LE(1, 16)
      parts.push(end64, locator)
    }
    const end = Buffer.alloc(22)
    end.writeUInt32LE(0x06054b50, 0)
    end.writeUInt16LE(Math.min(count, MAX16), 8)
    end.writeUInt16LE(Math.min(count, MAX16), 10)
    end.writeUInt32LE(Math.min(size, MAX32), 12)
    end.writeUInt32LE(Math.min(start, MAX32), 16)
    await this.#write(Buffer.concat([...parts, end]))
  }

  /** What local headers and the directory have in common. */
  #common({ method, crc, size, stored }: Omit<ZipMember, 'name'>, name: string, into: Buffer, at: number) {
    into.writeUInt16LE(PLAIN_VERSION, at)
    into.writeUInt16LE(method, at + 4)
    into.writeUInt32LE(this.#time, at + 6)
    into.writeUInt32LE(crc, at + 10)
    into.writeUInt32LE(stored.length, at + 14)
    into.writeUInt32LE(size, at + 18)
    into.writeUInt16LE(name.length, at + 22)
  }

  #entry(member: ZipMember) {
    const far = this.#at >= MAX32
    const entry = Buffer.alloc(CENTRAL + member.name.length + (far ? 12 : 0))
    entry.writeUInt32LE(0x02014b50, 0)
    entry.writeUInt16LE(MADE_BY, 4)
    this.#common(member, member.name, entry, 6)
    if (far) entry.writeUInt16LE(ZIP64_VERSION, 6)
    entry.writeUInt16LE(far ? 12 : 0, 30)
    entry.writeUInt32LE(MODE >>> 0, 38)
    entry.writeUInt32LE(Math.min(this.#at, MAX32), 42)
    entry.write(member.name, CENTRAL, 'ascii')
    if (far) {
      const extra = CENTRAL + member.name.length
      entry.writeUInt16LE(ZIP64, extra)
      entry.writeUInt16LE(8, extra + 2)
      entry.writeBigUInt64LE(BigInt(this.#at), extra + 4)
    }
    return entry
  }

  async #write(bytes: Uint8Array) {
    for (let done = 0; done < bytes.length;) {
      const { bytesWritten } = await this.file.write(bytes, done, bytes.length - done, this.#at + done)
      done += bytesWritten
    }
    this.#at += bytes.length
  }
}
