// A portable archive that is open: its restore points, and the disks in them.

import { hash } from 'node:crypto'
import { endOf, intersect, type Range } from '../base/ranges.ts'
import { messageOf } from '../base/errors.ts'
import type { Extent } from '../block/driver.ts'
import { MAX_ATTACHMENT } from '../repository/attachment.ts'
import { pointKey, type DiskManifest, type Manifest } from '../repository/manifest.ts'
import { BadArchive } from './faults.ts'
import {
  archiveSchema,
  attachmentName,
  INDEX,
  listName,
  MAX_INDEX,
  MAX_LIST,
  parseList,
  type ArchiveIndex,
  type Piece,
} from './format.ts'
import { ZipFile } from './zip-file.ts'

export interface ArchivedPoint {
  readonly key: string
  readonly manifest: Manifest
  readonly folder: string
}

export class Archive implements AsyncDisposable {
  readonly points: readonly ArchivedPoint[]

  private constructor(
    private readonly zip: ZipFile,
    { points }: ArchiveIndex,
  ) {
    this.points = points.map(({ folder, manifest }) => ({ key: pointKey(manifest), manifest, folder }))
  }

  /** @throws BadArchive where it is none, or damaged */
  static async open(path: string): Promise<Archive> {
    await using undo = new AsyncDisposableStack()
    const zip = undo.use(await ZipFile.open(path))
    const archive = new Archive(zip, parseIndex(await zip.read(INDEX, MAX_INDEX), path))
    undo.move()
    return archive
  }

  get location() {
    return this.zip.path
  }

  /** @throws BadArchive */
  async disk({ folder }: ArchivedPoint, { name, size }: DiskManifest): Promise<ArchivedDisk> {
    const list = listName(folder, name)
    const text = (await this.zip.read(list, MAX_LIST)).toString('latin1')
    return new ArchivedDisk(this.zip, size, parseList(text, size, `${this.location}: ${list}`))
  }

  async attachments({ folder, manifest }: ArchivedPoint) {
    const all: { name: string; bytes: Buffer }[] = []
    for (const [number, { name, size }] of manifest.attachments.entries()) {
      if (size > MAX_ATTACHMENT) throw new BadArchive(`'${this.location}': the attachment '${name}' is too large`)
      all.push({ name, bytes: await this.zip.read(attachmentName(folder, number), size) })
    }
    return all
  }

  async [Symbol.asyncDispose]() {
    await this.zip[Symbol.asyncDispose]()
  }
}

/** What a push can keep account of. */
const MAX_CHUNKS = 2 ** 32

function parseIndex(bytes: Buffer, path: string): ArchiveIndex {
  let value: unknown
  try {
    value = JSON.parse(bytes.toString('utf8'))
  } catch (error) {
    throw new BadArchive(`'${path}': ${INDEX} is no JSON: ${messageOf(error)}`, { cause: error })
  }
  const result = archiveSchema.safeParse(value)
  if (result.success) {
    for (const { size, chunkSize } of result.data.points.flatMap(({ manifest }) => manifest.disks))
      if (size / chunkSize > MAX_CHUNKS) throw new BadArchive(`'${path}': no disk has ${size} bytes in chunks of ${chunkSize}`)
    return result.data
  }
  const [issue] = result.error.issues
  throw new BadArchive(
    `'${path}' is no archive that this version reads: ${INDEX}: ${issue!.path.join('.') || 'all of it'}: ${issue!.message}`,
  )
}

/** As many pieces are kept for who reads them again, or reads on. */
const KEPT = 4

/** A disk as it stands in the archive, to be read. */
export class ArchivedDisk {
  readonly #kept = new Map<Piece, Promise<Buffer>>()

  constructor(
    private readonly zip: ZipFile,
    readonly size: number,
    /** In order; what is in none of them is zero. */
    readonly pieces: readonly Piece[],
  ) {}

  /** The bytes of a piece, which are those that were written. @throws BadArchive */
  async bytesOf({ entry, length, sha256 }: Piece): Promise<Buffer> {
    const bytes = await this.zip.read(entry, length)
    if (bytes.length !== length || hash('sha256', bytes) !== sha256)
      throw new BadArchive(`'${this.zip.path}': the entry '${entry}' has not the bytes that were written`)
    return bytes
  }

  async read(offset: number, into: Buffer) {
    into.fill(0)
    const range = { offset, length: into.length }
    for (const piece of this.#within(range)) {
      const part = intersect(piece, range)!
      const bytes = await this.#load(piece)
      into.set(bytes.subarray(part.offset - piece.offset, endOf(part) - piece.offset), part.offset - offset)
    }
  }

  async *extents(range: Range): AsyncGenerator<Extent> {
    let at = range.offset
    for (const piece of this.#within(range)) {
      const part = intersect(piece, range)!
      if (part.offset > at) yield { offset: at, length: part.offset - at, allocated: false, zero: true }
      yield { ...part, allocated: true, zero: false }
      at = endOf(part)
    }
    if (at < endOf(range)) yield { offset: at, length: endOf(range) - at, allocated: false, zero: true }
  }

  *#within(range: Range) {
    let [low, high] = [0, this.pieces.length]
    while (low < high) {
      const middle = (low + high) >> 1
      if (endOf(this.pieces[middle]!) <= range.offset) low = middle + 1
      else high = middle
    }
    for (let at = low; at < this.pieces.length && this.pieces[at]!.offset < endOf(range); at++) yield this.pieces[at]!
  }

  #load(piece: Piece) {
    let bytes = this.#kept.get(piece)
    if (bytes) this.#kept.delete(piece)
    else bytes = this.bytesOf(piece)
    this.#kept.set(piece, bytes)
    if (this.#kept.size > KEPT) this.#kept.delete(this.#kept.keys().next().value!)
    return bytes
  }
}
