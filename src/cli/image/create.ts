// Makes a new image file: qemu-img create, and what convert writes into.

import { open, rm, stat } from 'node:fs/promises'
import { dirname, isAbsolute, join } from 'node:path'
import { InvalidParameter, NotSupported } from '../../base/errors.ts'
import { systemFault } from '../../base/system-fault.ts'
import type { Edge } from '../../block/edge.ts'
import { createImage, type CreateOptions, type Preallocation } from '../../drivers/qcow2/create.ts'
import type { Images } from './images.ts'
import { keyValues, type KnownOption } from './key-values.ts'
import { alignedSize } from './sizes.ts'

const rawOptions: Record<string, KnownOption> = {
  preallocation: { kind: ['off', 'falloc', 'full'], help: 'Space to be set aside, or written (off, falloc, full)' },
  size: { kind: 'size', help: 'Virtual disk size' },
}

const qcow2Options: Record<string, KnownOption> = {
  backing_file: { kind: 'text', help: 'File name of a base image' },
  backing_fmt: { kind: 'text', help: 'Image format of the base image' },
  cluster_size: { kind: 'size', help: 'qcow2 cluster size' },
  compat: { kind: ['0.10', 'v2', '1.1', 'v3'], help: 'Compatibility level (v2 [0.10] or v3 [1.1])' },
  compression_type: { kind: ['zlib', 'zstd'], help: 'Compression method used for image cluster compression' },
  data_file: { kind: 'text', help: 'File name of an external data file' },
  data_file_raw: { kind: 'switch', help: 'The external data file must stay valid as a raw image' },
  extended_l2: { kind: 'switch', help: 'Extended L2 tables' },
  lazy_refcounts: { kind: 'switch', help: 'Say so in the image; refcounts are kept all the same' },
  preallocation: { kind: ['off', 'metadata', 'falloc', 'full'], help: 'Preallocation mode (off, metadata, falloc, full)' },
  refcount_bits: { kind: 'number', help: 'Width of a reference count entry in bits' },
  size: { kind: 'size', help: 'Virtual disk size' },
}

export const optionsOfFormat = (format: string): Record<string, KnownOption> => {
  if (format === 'raw') return rawOptions
  if (format === 'qcow2') return qcow2Options
  throw new NotSupported(`Unknown file format '${format}'; raw and qcow2 can be made`)
}

export interface NewImage {
  readonly path: string
  readonly format: string
  /** As -o has them. */
  readonly options: readonly string[]
  readonly size?: number | undefined
  readonly backingFile?: string | undefined
  readonly backingFormat?: string | undefined
  /** Do not look at the backing file. */
  readonly unsafe?: boolean | undefined
}

/** What was made, in qemu-img's words: `Formatting 'x', fmt=raw size=1048576`. @throws Fault; then a file that was not there is not there */
export async function makeImage(images: Images, wanted: NewImage): Promise<string> {
  const { path, format } = wanted
  const known = optionsOfFormat(format)
  const given = keyValues(wanted.options, known, format)
  if ((wanted.backingFile ?? given['backing_file']) !== undefined && format === 'raw')
    throw new InvalidParameter("Backing file not supported for file format 'raw'")
  const backingFile = wanted.backingFile ?? (given['backing_file'] as string | undefined)
  const backingFormat = wanted.backingFormat ?? (given['backing_fmt'] as string | undefined)
  if (backingFormat !== undefined) optionsOfBacking(backingFormat)
  const asked =
    wanted.size ??
    (given['size'] as number | undefined) ??
    (await sizeOfBacking(images, { ...wanted, backingFile, backingFormat }))
  const size = alignedSize(asked)
  if (backingFile !== undefined && !wanted.unsafe) {
    if (backingFormat === undefined)
      throw new InvalidParameter(
        `Backing file specified without backing format; name it with -F (raw, qcow2): what a guest writes could change what is detected`,
      )
    await sizeOfBacking(images, { ...wanted, backingFile, backingFormat })
  }
  const options: CreateOptions = { size, ...qcow2OptionsOf(given), backingFile, backingFormat }
  await using made = new NewFile(path)
  await made.create()
  if (format === 'raw') await makeRaw(images, path, size, given['preallocation'] as Preallocation | undefined)
  else await makeQcow2(images, path, options)
  made.keep()
  return told(path, format, given, { ...options, size: asked })
}

/** The node stays open until the graph is closed; whoever comes next opens the image anew. */
async function withFile(images: Images, path: string, work: (file: Edge) => Promise<void>) {
  const node = await images.graph.open({ driver: 'file', filename: path, discard: 'unmap' })
  const edge = images.writer(node)
  try {
    await work(edge)
  } finally {
    await images.graph.detach(edge)
    await images.graph.delete(node.name)
  }
}

const makeRaw = (images: Images, path: string, size: number, preallocation: Preallocation = 'off') =>
  withFile(images, path, async file => {
    const isFile = (await stat(path)).isFile()
    if (!isFile && file.size < size)
      throw new InvalidParameter(`The device '${path}' has ${file.size} bytes, and the image needs ${size}`)
    if (!isFile) return
    await file.resize(0)
    await file.resize(size)
    if (preallocation === 'falloc') await file.zero({ offset: 0, length: size })
    if (preallocation === 'full') await writeZeroes(file, size)
    await file.flush()
  })

async function writeZeroes(file: Edge, size: number) {
  const zeroes = Buffer.alloc(1 << 20)
  for (let offset = 0; offset < size; offset += zeroes.length)
    await file.write(offset, zeroes.subarray(0, Math.min(zeroes.length, size - offset)))
}

const makeQcow2 = (images: Images, path: string, options: CreateOptions) =>
  withFile(images, path, async file => {
    const { dataFile } = options
    if (dataFile === undefined) return createImage(file, options)
    const dataPath = isAbsolute(dataFile) ? dataFile : join(dirname(path), dataFile)
    await using data = new NewFile(dataPath)
    await data.create()
    await withFile(images, dataPath, async edge => {
      await edge.resize(0)
      await createImage(file, options, edge)
    })
    data.keep()
  })

type Given = ReturnType<typeof keyValues>

function qcow2OptionsOf(given: Given) {
  const { compat } = given
  const all = {
    clusterSize: given['cluster_size'],
    refcountBits: given['refcount_bits'],
    version: compat === undefined ? undefined : compat === '0.10' || compat === 'v2' ? 2 : 3,
    compressionType: given['compression_type'],
    dataFile: given['data_file'],
    dataFileRaw: given['data_file_raw'],
    extendedL2: given['extended_l2'],
    lazyRefcounts: given['lazy_refcounts'],
    preallocation: given['preallocation'],
  }
  // The kinds of the options are those of the table above.
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined)) as Omit<CreateOptions, 'size'>
}

const asText = (value: unknown) => (typeof value === 'boolean' ? (value ? 'on' : 'off') : String(value))

function told(path: string, format: string, given: Given, options: CreateOptions): string {
  const facts: Record<string, unknown> =
    format === 'raw'
      ? { size: options.size, preallocation: given['preallocation'] }
      : {
          cluster_size: options.clusterSize ?? 65536,
          extended_l2: options.extendedL2 ?? false,
          preallocation: given['preallocation'],
          compression_type: options.compressionType ?? 'zlib',
          size: options.size,
          compat: given['compat'],
          backing_file: options.backingFile,
          backing_fmt: options.backingFormat,
          data_file: options.dataFile,
          data_file_raw: options.dataFileRaw,
          lazy_refcounts: options.lazyRefcounts ?? false,
          refcount_bits: options.refcountBits ?? 16,
        }
  const shown = Object.entries(facts).filter(([, value]) => value !== undefined)
  return `Formatting '${path}', fmt=${format} ${shown.map(([name, value]) => `${name}=${asText(value)}`).join(' ')}`
}

function optionsOfBacking(format: string) {
  if (!['raw', 'qcow2', 'nbd', 'file'].includes(format)) throw new InvalidParameter(`Unknown backing format '${format}'`)
}

/** What the new image is as long as. It is looked for where the new image will look for it. */
async function sizeOfBacking(images: Images, { path, backingFile, backingFormat, unsafe }: NewImage): Promise<number> {
  if (backingFile === undefined || unsafe) throw new InvalidParameter('Image creation needs a size parameter')
  const plain = !/^[a-z][a-z0-9+.-]*:/.test(backingFile) && !isAbsolute(backingFile)
  const name = plain ? join(dirname(path), backingFile) : backingFile
  const node = await images.openReadOnly({ name, format: backingFormat })
  const { size } = node
  await images.graph.delete(node.name)
  return size
}

/** A file that goes again unless it is kept, where it was not there before. */
class NewFile implements AsyncDisposable {
  #made = false

  constructor(private readonly path: string) {}

  async create() {
    try {
      await using handle = await open(this.path, 'wx', 0o644)
      this.#made = (await handle.stat()).isFile()
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EEXIST') return
      throw systemFault(`Could not create '${this.path}'`, error)
    }
  }

  keep() {
    this.#made = false
  }

  async [Symbol.asyncDispose]() {
    if (this.#made) await rm(this.path)
  }
}
