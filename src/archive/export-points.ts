// Writes restore points of a repository to a portable archive.
//
// The disks are read window by window; of each window what lies between its first and its last chunk is a piece, so holes of some size take
// no room. Several pieces are at work at once, and they are written in order. A piece that an earlier restore point has as well is written
// once. The file bears its name only when all of it is there.

import { hash } from 'node:crypto'
import { constants } from 'node:fs'
import { open, realpath, rm, stat, type FileHandle } from 'node:fs/promises'
import { promisify } from 'node:util'
import zlib from 'node:zlib'
import { renameDurably } from '../base/atomic-file.ts'
import { Busy, InvalidParameter } from '../base/errors.ts'
import { systemFault } from '../base/system-fault.ts'
import { canonicalJson } from '../repository/canonical-json.ts'
import { POINTS, type DiskManifest } from '../repository/manifest.ts'
import { RepositoryReader } from '../repository/reader.ts'
import type { Repository } from '../repository/repository.ts'
import { Sealer } from '../repository/sealer.ts'
import { walkChunks } from '../repository/walk.ts'
import { PointDisk } from '../restore/point-disk.ts'
import { attachmentName, INDEX, lineOf, listName, newIndex, pieceName, safePart, windowOf, type Piece } from './format.ts'
import { Method, ZipWriter, type ZipMember } from './zip-writer.ts'

export interface ExportOptions {
  readonly repository: Repository
  /** Keys of restore points. */
  readonly points: readonly string[]
  readonly path: string
  /** A file of that name may go. */
  readonly force?: boolean
  readonly signal: AbortSignal
}

export interface ExportProgress {
  /** Bytes of the disks that are looked at, of all restore points, and the bytes of the archive so far. */
  done: number
  readonly total: number
  written: number
}

/** Pieces at work at once; large ones are fewer. */
const AT_ONCE = 4
const AT_WORK = 128 << 20

const deflate = promisify<Uint8Array, zlib.ZlibOptions, Buffer>(zlib.deflateRaw)

/** Yields progress. @throws Busy where there is such a file; when it ends early nothing of it is left */
export async function* exportPoints(options: ExportOptions): AsyncGenerator<ExportProgress, ExportProgress> {
  const { repository, points: keys, signal } = options
  if (keys.length === 0) throw new InvalidParameter('say which restore points')
  await using reader = await RepositoryReader.begin(repository, [...new Set(keys)].sort(), { signal })
  const manifests = reader.points.map(({ manifest }) => manifest)
  const chunkSizes = manifests.flatMap(({ disks }) => disks.map(({ chunkSize }) => chunkSize))
  await using sealer = Sealer.start({ maxPlain: Math.max(65536, ...chunkSizes) })
  await using out = await Output.create(options)
  const total = manifests.flatMap(({ disks }) => disks).reduce((sum, { size }) => sum + size, 0)
  const progress: ExportProgress = { done: 0, total, written: 0 }
  const zip = new ZipWriter(out, new Date())
  const folders = reader.points.map(({ key }) => key.slice(POINTS.length).split('/').map(safePart).join('/'))
  const index = newIndex(manifests.map((manifest, at) => ({ folder: folders[at]!, manifest })))
  await zip.add(await member(INDEX, canonicalJson(index)))
  const known = new Map<string, Piece>()
  for (const [at, { disks, attachments }] of manifests.entries()) {
    for (const [number, { id }] of attachments.entries())
      await zip.add(await member(attachmentName(folders[at]!, number), await reader.attachment(id)))
    for (const disk of disks) {
      const exporter = new DiskExport(reader, disk, { folder: folders[at]!, zip, sealer, known })
      for await (const done of exporter.run()) {
        progress.written = zip.bytes
        yield { ...progress, done: progress.done + done }
      }
      progress.done += disk.size
    }
  }
  await zip.finish()
  progress.written = zip.bytes
  await out.keep()
  return progress
}

interface Context {
  readonly folder: string
  readonly zip: ZipWriter
  readonly sealer: Sealer
  /** Pieces that are in the archive, by the chunks they are made of. */
  readonly known: Map<string, Piece>
}

/** What lies between the first and the last chunk of a window. */
interface Part {
  readonly offset: number
  end: number
  readonly ids: Buffer[]
}

class DiskExport {
  readonly #lines: string[] = []
  readonly #source: PointDisk
  readonly #window: number
  readonly #queue: Promise<{ piece: Piece; member: ZipMember | undefined }>[] = []

  constructor(
    private readonly reader: RepositoryReader,
    private readonly disk: DiskManifest,
    private readonly context: Context,
  ) {
    this.#source = new PointDisk({ reader, disk, sealer: context.sealer })
    this.#window = Math.max(windowOf(disk.size), disk.chunkSize)
  }

  /** Yields how much of the disk is looked at. */
  async *run(): AsyncGenerator<number> {
    const { zip, folder } = this.context
    const atOnce = Math.max(1, Math.min(AT_ONCE, Math.floor(AT_WORK / this.#window)))
    try {
      for await (const part of this.#parts()) {
        this.reader.signal.throwIfAborted()
        if (this.#queue.length >= atOnce) await this.#writeOne()
        const work = this.#prepare(part)
        work.catch(() => 'it is told when its turn comes')
        this.#queue.push(work)
        yield part.offset
      }
      while (this.#queue.length > 0) await this.#writeOne()
    } finally {
      await Promise.allSettled(this.#queue)
      await this.#source[Symbol.asyncDispose]()
    }
    await zip.add(await member(listName(folder, this.disk.name), Buffer.from(this.#lines.join(''), 'latin1')))
  }

  async *#parts(): AsyncGenerator<Part> {
    const { size, chunkSize } = this.disk
    let part: Part | undefined
    for await (const { chunk, id } of walkChunks(this.reader.nodes, this.disk)) {
      const offset = chunk * chunkSize
      const end = Math.min(size, offset + chunkSize)
      if (part && Math.floor(part.offset / this.#window) !== Math.floor(offset / this.#window)) {
        yield part
        part = undefined
      }
      part ??= { offset, end, ids: [] }
      // Where there is a hole before it as well: a piece with holes elsewhere is another one.
      part.ids.push(Buffer.from(`@${offset - part.offset}:`), id)
      part.end = end
    }
    if (part) yield part
  }

  async #prepare({ offset, end, ids }: Part): Promise<{ piece: Piece; member: ZipMember | undefined }> {
    const { folder, known } = this.context
    const length = end - offset
    const chunks = hash('sha256', Buffer.concat([...ids, Buffer.from(`=${length}`)]), 'base64')
    const same = known.get(chunks)
    if (same) return { piece: { ...same, offset }, member: undefined }
    const plain = Buffer.allocUnsafeSlow(length)
    await this.#source.read(offset, plain)
    const entry = pieceName(folder, this.disk.name, offset)
    const piece = { offset, length, sha256: hash('sha256', plain), entry }
    const made = await member(entry, plain)
    known.set(chunks, piece)
    return { piece, member: made }
  }

  async #writeOne() {
    const { piece, member } = await this.#queue.shift()!
    if (member) await this.context.zip.add(member)
    this.#lines.push(lineOf(piece))
  }
}

async function member(name: string, plain: Uint8Array): Promise<ZipMember> {
  const deflated = plain.length > 0 ? await deflate(plain, { level: 1 }) : plain
  const smaller = deflated.length < plain.length
  const stored = smaller ? deflated : plain
  return { name, stored, method: smaller ? Method.deflated : Method.stored, crc: zlib.crc32(plain), size: plain.length }
}

/** A new file under another name, until it is kept. */
class Output implements AsyncDisposable {
  #kept = false

  private constructor(
    readonly file: FileHandle,
    private readonly partial: string,
    private readonly path: string,
  ) {}

  static async create({ path: wanted, force = false }: ExportOptions) {
    const before = await there(wanted)
    if (before && !before.isFile()) throw new InvalidParameter(`'${wanted}' is no file: name one that ends with .zip`)
    if (before && !force) throw new Busy(`'${wanted}' is there already; choose another name, or --force to replace it`)
    const path = before ? await realpath(wanted) : wanted
    const partial = `${path}.partial`
    try {
      // Nothing in it is encrypted: it is its owner's alone, until the owner says otherwise.
      await rm(partial, { force: true })
      const flags = constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY | constants.O_NOFOLLOW
      return new Output(await open(partial, flags, 0o600), partial, path)
    } catch (error) {
      throw systemFault(`Could not create '${partial}'`, error)
    }
  }

  async write(bytes: Uint8Array, offset: number, length: number, position: number) {
    try {
      return await this.file.write(bytes, offset, length, position)
    } catch (error) {
      throw systemFault(`Could not write '${this.path}', which is not made`, error)
    }
  }

  async keep() {
    try {
      await this.file.close()
      await renameDurably(this.partial, this.path)
      this.#kept = true
    } catch (error) {
      throw systemFault(`Could not finish '${this.path}'`, error)
    }
  }

  async [Symbol.asyncDispose]() {
    if (this.#kept) return
    await this.file.close()
    await rm(this.partial, { force: true })
  }
}

async function there(path: string) {
  try {
    return await stat(path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw systemFault(`Could not open '${path}'`, error)
  }
}
