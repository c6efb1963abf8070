// Reads what the guest sees, from an image's clusters or from what stands behind it. Takes no locks: see release.ts for why what is
// looked up stays where it is until the read has ended.

import type { Range } from '../../base/ranges.ts'
import type { BlockIo, ReadPlace } from '../../block/driver.ts'
import { CorruptImage } from './corrupt-image.ts'
import type { DecompressedCache } from './decompressed-cache.ts'
import { hex } from './format.ts'
import type { Geometry } from './geometry.ts'
import type { HostFile } from './host-file.ts'
import { Kind, type Mapping } from './mapping.ts'
import { Tasks } from './tasks.ts'

/** As much of an image, or of a snapshot in it, as reading needs. */
export interface Readable {
  readonly geometry: Geometry
  readonly file: HostFile
  readonly dataFile: BlockIo | undefined
  readonly backing: BlockIo | undefined
  readonly decompressed: DecompressedCache
  readonly mapping: Mapping
}

/** Runs that are looked for before the first of them are waited for. */
const AT_ONCE = 64

export class Reader {
  constructor(private readonly image: Readable) {}

  /** The most common case, a range in one piece in the file, waits for the file and nothing else. */
  read(offset: number, into: Buffer): Promise<void> {
    const { mapping } = this.image
    if (mapping.find(offset, into.length) && mapping.length === into.length && mapping.kind === Kind.data)
      return this.#readHost(mapping.host, into)
    return this.#readRuns(offset, into)
  }

  /** Of data in one piece whose place is known without waiting for a table. */
  place({ offset, length }: Range): ReadPlace | undefined {
    const { mapping, dataFile, file } = this.image
    if (dataFile || !mapping.find(offset, length) || mapping.kind !== Kind.data) return undefined
    const { host } = mapping
    if (this.#extend(offset, host, mapping.length, length) < length || host + length > file.size) return undefined
    return file.below.readPlace?.({ offset: host, length })
  }

  async #readRuns(offset: number, into: Buffer) {
    const { mapping } = this.image
    const tasks = new Tasks()
    try {
      for (let done = 0; done < into.length && !tasks.failed;) {
        if (!mapping.find(offset + done, into.length - done)) {
          await mapping.load(offset + done)
          continue
        }
        const at = offset + done
        const { kind, host, length, compressedLength } = mapping
        const whole = kind === Kind.data ? this.#extend(at, host, length, into.length - done) : length
        const part = into.subarray(done, done + whole)
        done += whole
        if (kind === Kind.zero) part.fill(0)
        else if (kind === Kind.unallocated) this.#readBacking(at, part, tasks)
        else if (kind === Kind.data) tasks.add(this.#readHost(host, part))
        else tasks.add(this.#readCompressed(at, host, compressedLength, part))
        if (tasks.count >= AT_ONCE) await tasks.ended()
      }
    } finally {
      await tasks.ended()
    }
  }

  /** How far data go on in one piece behind what `find` said, which looks at one slice of a table at a time. */
  #extend(offset: number, host: number, length: number, most: number) {
    const { mapping } = this.image
    while (length < most && mapping.find(offset + length, most - length)) {
      if (mapping.kind !== Kind.data || mapping.host !== host + length) break
      length += mapping.length
    }
    return length
  }

  /** The last cluster of a file may be cut short; one that is not there at all is missing. */
  #readHost(host: number, into: Buffer): Promise<void> {
    const { dataFile, file } = this.image
    file.below.announce?.('read_aio')
    if (dataFile) return readPadded(dataFile, host, into)
    if (host < file.size) return file.read(host, into)
    return Promise.reject(new CorruptImage(`guest data at ${hex(host)} are behind the end of the file, which has been cut short`))
  }

  /** A backing file may be shorter than its overlay: what it lacks reads as zeroes. */
  #readBacking(offset: number, into: Buffer, tasks: Tasks) {
    const { backing } = this.image
    const there = backing ? Math.min(into.length, Math.max(0, backing.size - offset)) : 0
    into.fill(0, there)
    if (backing && there > 0) this.image.file.below.announce?.('read_backing_aio')
    if (backing && there > 0) tasks.add(backing.read(offset, into.subarray(0, there)))
  }

  async #readCompressed(offset: number, host: number, compressedLength: number, into: Buffer) {
    this.image.file.below.announce?.('read_compressed')
    const cluster = await this.image.decompressed.read(host, compressedLength)
    const from = offset % this.image.geometry.clusterSize
    into.set(cluster.subarray(from, from + into.length))
  }
}

/** An external data file may be shorter than the disk. */
function readPadded(file: BlockIo, offset: number, into: Buffer): Promise<void> {
  const there = Math.min(into.length, Math.max(0, file.size - offset))
  into.fill(0, there)
  return there === 0 ? Promise.resolve() : file.read(offset, into.subarray(0, there))
}
