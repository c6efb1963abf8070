// The work of `stillpoint restore`: each disk that was asked for, from a restore point to where it shall go.

import { join } from 'node:path'
import { Fault, InvalidParameter, messageOf, NotFound } from '../../base/errors.ts'
import type { Range } from '../../base/ranges.ts'
import type { DiskManifest, Manifest } from '../../repository/manifest.ts'
import { exitCodes } from '../exit-codes.ts'
import { clean } from '../format.ts'
import { Images } from '../image/images.ts'
import { note } from '../output.ts'
import { Progress } from '../progress.ts'
import { openSink, type Sink, type TargetFormat } from './sink.ts'
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

/** Yields each disk when it is there. One that fails keeps no other from being restored; that is told at the end. */
export async function* restoreDisks(source: RestoreSource, wanted: RestoreWanted): AsyncGenerator<Restored> {
  const disks = chosen(source.manifest, wanted).map(disk => ({ disk, target: targetOf(disk, wanted) }))
  await using opened = new AsyncDisposableStack()
  const targets: Target[] = []
  // What cannot be is found out before anything is written.
  for (const { disk, target } of disks) targets.push(opened.use(await Target.open(disk, target, wanted)))
  const failed: Fault[] = []
  for (const target of targets) {
    try {
      yield await restoreDisk(source, target, wanted)
    } catch (error) {
      if (!(error instanceof Fault) || wanted.signal.aborted || targets.length === 1) throw error
      note(`Why: ${error.message}.`)
      failed.push(error)
    }
  }
  if (failed.length > 0) throw new NotAll(failed, targets.length)
}

/** Some disks are there, and others are not: the program ends as the first of these would have ended it. */
class NotAll extends Fault {
  override readonly exitCode: number

  constructor(failed: readonly Fault[], of: number) {
    super(`${failed.length} of ${of} disks could not be restored; the same for one disk at a time tries them again`)
    this.exitCode = failed[0]!.exitCode
  }
}

/** Where one disk goes; what does not come to its end is dropped. */
class Target implements AsyncDisposable {
  #open = true

  private constructor(
    readonly disk: DiskManifest,
    readonly name: string,
    private readonly images: Images,
    readonly sink: Sink,
  ) {}

  static async open(disk: DiskManifest, name: string, { format, force, inPlace }: RestoreWanted) {
    await using parts = new AsyncDisposableStack()
    const images = parts.use(new Images())
    const sink = await openSink(images, { target: name, format, size: disk.size, force, inPlace })
    parts.move()
    return new Target(disk, name, images, sink)
  }

  async finish() {
    await this.sink.finish()
    this.#open = false
    await this.images[Symbol.asyncDispose]()
  }

  /** What is said of it then. */
  async drop() {
    this.#open = false
    await this.images[Symbol.asyncDispose]().catch((other: unknown) =>
      note(`Nor could its image be closed: ${messageOf(other)}.`),
    )
    return this.sink.drop()
  }

  async [Symbol.asyncDispose]() {
    if (this.#open) await this.drop()
  }
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

async function restoreDisk(
  source: RestoreSource,
  target: Target,
  { inPlace, skipDamaged, signal }: RestoreWanted,
): Promise<Restored> {
  const { disk, sink } = target
  const begun = performance.now()
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
    if (io.size > disk.size && inPlace) note(`'${target.name}' is longer than the disk; what is behind its end is as it was.`)
    await target.finish()
    damaged.sort((a, b) => a.offset - b.offset)
    return { disk: disk.name, target: target.name, size: disk.size, written, zeroed, damaged, ms: performance.now() - begun }
  } catch (error) {
    note(`The restore of disk '${clean(disk.name)}' has failed; ${await target.drop()}.`)
    if (!skipDamaged && error instanceof Fault && error.exitCode === exitCodes.damageFound)
      note('With --skip-damaged all the rest of it is restored, and what is missing is listed.')
    throw error
  }
}
