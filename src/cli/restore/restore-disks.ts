// The work of `stillpoint restore`: each disk that was asked for, from a restore point to where it shall go.

import { join } from 'node:path'
import { InvalidParameter, messageOf, NotFound } from '../../base/errors.ts'
import type { Range } from '../../base/ranges.ts'
import type { DiskManifest, Manifest } from '../../repository/manifest.ts'
import { clean } from '../format.ts'
import { Images } from '../image/images.ts'
import { note } from '../output.ts'
import { Progress } from '../progress.ts'
import { openSink, type TargetFormat } from './sink.ts'
import type { RestoreSource } from './source.ts'

export interface RestoreWanted {
  /** Undefined: all of them, to a folder; or the only one. */
  readonly disk: string | undefined
  readonly to: { readonly target: string } | { readonly folder: string }
  readonly format: TargetFormat | undefined
  readonly force: boolean
  readonly inPlace: boolean
  /** Go on where something of the disk is damaged, and leave that out. */
  readonly skipDamaged: boolean
  readonly signal: AbortSignal
}

export interface Restored {
  readonly disk: string
  readonly target: string
  readonly size: number
  readonly written: number
  readonly zeroed: number
  /** What could not be had. */
  readonly damaged: readonly Range[]
  readonly ms: number
}

/** Yields each disk when it is there. */
export async function* restoreDisks(source: RestoreSource, wanted: RestoreWanted): AsyncGenerator<Restored> {
  // What cannot be is found out before anything is written.
  const disks = chosen(source.manifest, wanted).map(disk => ({ disk, target: targetOf(disk, wanted) }))
  for (const { disk, target } of disks) yield await restoreDisk(source, disk, target, wanted)
}

function chosen({ disks, machine }: Manifest, { disk: name, to }: RestoreWanted): readonly DiskManifest[] {
  const names = disks.map(({ name }) => `'${clean(name)}'`).join(', ')
  if (name === undefined) {
    if (disks.length > 1 && 'target' in to)
      throw new InvalidParameter(`the restore point has the disks ${names}: say which one, or --to FOLDER for all of them`)
    return disks
  }
  const found = disks.find(disk => disk.name === name)
  if (!found) throw new NotFound(`the restore point of '${clean(machine)}' has no disk '${name}'; it has ${names}`)
  return [found]
}

function targetOf({ name }: DiskManifest, { to, format = 'raw' }: RestoreWanted): string {
  if ('target' in to) return to.target
  // The repository's word is not to lead out of the folder.
  if (/[/\0]/.test(name) || name === '.' || name === '..')
    throw new InvalidParameter(
      `the disk '${clean(name)}' has a name that no file can have: restore it alone, to a file of your choice`,
    )
  return join(to.folder, `${name}.${format}`)
}

async function restoreDisk(source: RestoreSource, disk: DiskManifest, target: string, wanted: RestoreWanted): Promise<Restored> {
  const { format, force, inPlace, skipDamaged, signal } = wanted
  const begun = performance.now()
  await using images = new Images()
  const sink = await openSink(images, { target, format, size: disk.size, force, inPlace })
  const damaged: Range[] = []
  const { io } = sink
  try {
    using shown = new Progress(`restoring ${clean(disk.name)}`, disk.size)
    const work = source.restore(disk, {
      sink: io,
      sinkIsZero: sink.isZero,
      ...(inPlace && { inPlace: io }),
      ...(skipDamaged && { damaged: (range: Range) => void damaged.push(range) }),
      signal,
    })
    let step = await work.next()
    for (; !step.done; step = await work.next()) shown.at(step.value.done)
    const { written, zeroed } = step.value
    if (io.size > disk.size && inPlace) note(`'${target}' is longer than the disk; what is behind its end is as it was.`)
    await sink.finish()
    damaged.sort((a, b) => a.offset - b.offset)
    return { disk: disk.name, target, size: disk.size, written, zeroed, damaged, ms: performance.now() - begun }
  } catch (error) {
    await images[Symbol.asyncDispose]().catch((other: unknown) => note(`Nor could its image be closed: ${messageOf(other)}.`))
    note(`The restore of disk '${clean(disk.name)}' has failed; ${await sink.drop()}.`)
    throw error
  }
}
