// From the words of `stillpoint image convert` to two open images, and back to bitmaps.

import { existsSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import { InvalidParameter, NotFound } from '../../base/errors.ts'
import { listBitmaps, storeBitmaps } from '../../drivers/qcow2/bitmaps.ts'
import { contentOf, load } from './bitmap.ts'
import { copyDisk } from './convert.ts'
import { makeImage } from './create.ts'
import { DiskProgress } from './disk-progress.ts'
import { Images, type ImageName } from './images.ts'
import { openQcow2 } from './open-qcow2.ts'
import { alignedSize } from './sizes.ts'

export interface ConvertOptions {
  readonly source: ImageName
  readonly target: ImageName
  readonly create: boolean
  readonly options: readonly string[]
  readonly backingFile?: string | undefined
  readonly backingFormat?: string | undefined
  readonly compress: boolean
  readonly sparse: number
  readonly targetIsZero: boolean
  readonly bitmaps: 'none' | 'all' | 'skip broken'
  readonly atOnce: number
  readonly progress: boolean
}

export async function convertImage(wanted: ConvertOptions): Promise<{ size: number; skipped: readonly string[] }> {
  const { create, compress, backingFile } = wanted
  await using images = new Images()
  const sourceNode = await images.openReadOnly(wanted.source)
  const source = wanted.source.forceShare ? images.reader(sourceNode) : images.copier(sourceNode)
  await checkTwo(wanted)
  if (create) await makeTarget(images, wanted, source.size)
  const format = create ? (wanted.target.format ?? 'raw') : wanted.target.format
  const targetNode = await images.openWritable({ ...wanted.target, format })
  const target = images.writer(targetNode)
  const driver = targetNode.driver.name
  if (compress && driver !== 'qcow2') throw new InvalidParameter(`Compression not supported for this file format (${driver})`)
  if (wanted.bitmaps !== 'none' && [sourceNode, targetNode].some(node => node.driver.name !== 'qcow2'))
    throw new InvalidParameter('Format driver does not support bitmaps; both images must be qcow2')
  if (target.size < source.size) throw new InvalidParameter('output file is smaller than input file')
  {
    using progress = new DiskProgress('converting', source.size, wanted.progress)
    await copyDisk({
      source,
      target,
      clusterSize: (await targetNode.info()).clusterSize ?? 512,
      compressed: compress,
      sparse: wanted.sparse,
      targetIsZero: backingFile === undefined && (wanted.targetIsZero || create),
      sameBacking: backingFile !== undefined,
      atOnce: wanted.atOnce,
      at: done => progress.at(done),
    })
  }
  const { size } = source
  await images.graph.detach(target)
  await images.graph.delete(targetNode.name)
  return { size, skipped: wanted.bitmaps === 'none' ? [] : await copyBitmaps(wanted) }
}

/** Without native help, and with -U, no lock says so. */
async function checkTwo({ source, target }: ConvertOptions) {
  const [one, other] = await Promise.all([source, target].map(identityOf))
  if (one !== undefined && one === other)
    throw new InvalidParameter(`'${target.name}' is the image that is to be converted; name another one for the result`)
}

/** Undefined where it is no file, or is not there: whoever opens it says so. */
async function identityOf({ name, imageOpts }: ImageName): Promise<string | undefined> {
  if (imageOpts || !existsSync(name)) return undefined
  const { dev, ino } = await stat(name)
  return `${dev}:${ino}`
}

async function makeTarget(images: Images, { target, options, backingFile, backingFormat }: ConvertOptions, size: number) {
  if (/^(nbd(\+\w+)?|json):/.test(target.name))
    throw new InvalidParameter(`'${target.name}' cannot be made; use -n for a target that is there`)
  const given = backingFile === undefined ? {} : { backingFile, backingFormat }
  await makeImage(images, { path: target.name, format: target.format ?? 'raw', options, size: alignedSize(size), ...given })
}

/** Those of the image itself, not of what is behind it. Returns the names of those that cannot be trusted. */
async function copyBitmaps({ source, target, bitmaps }: ConvertOptions): Promise<readonly string[]> {
  await using images = new Images()
  await using sourceImage = await openQcow2(images, source, { readOnly: true })
  const from = sourceImage.image
  const stored = (await listBitmaps(from)).bitmaps
  const broken = stored.filter(({ inconsistent }) => inconsistent !== undefined)
  if (broken.length > 0 && bitmaps !== 'skip broken')
    throw new NotFound(`Cannot copy inconsistent bitmap '${broken[0]!.name}'; use --skip-broken-bitmaps, or remove it`)
  await using to = await openQcow2(images, target, { readOnly: false })
  for (const bitmap of stored) {
    if (bitmap.inconsistent === undefined)
      await storeBitmaps(to.image, [contentOf(await load(from, bitmap), bitmap.name, bitmap.enabled)])
  }
  return broken.map(({ name }) => name)
}
