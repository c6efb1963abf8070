// A disk of a restore point compared with an image, a device or an export: `point verify --against`.

import { InvalidParameter, NotFound } from '../base/errors.ts'
import { formatSize } from '../base/units.ts'
import { RepositoryReader } from '../repository/reader.ts'
import type { Repository } from '../repository/repository.ts'
import { compareDisk } from '../restore/compare-disk.ts'
import { exitCodes } from './exit-codes.ts'
import { clean, plural } from './format.ts'
import { Images } from './image/images.ts'
import { shortPoint } from './open-repository.ts'
import { print, printJson } from './output.ts'
import { Progress } from './progress.ts'

interface Wanted {
  readonly key: string
  readonly against: string
  readonly disk: string | undefined
  readonly format: string | undefined
  readonly json: boolean
  readonly signal: AbortSignal
}

/** The exit code, where the two differ. */
export async function comparePoint(repository: Repository, wanted: Wanted): Promise<number | undefined> {
  const { key, against, disk: name, format, json, signal } = wanted
  await using reader = await RepositoryReader.begin(repository, [key], { signal })
  const { disks } = reader.points[0]!.manifest
  const names = disks.map(disk => `'${clean(disk.name)}'`).join(', ')
  if (name === undefined && disks.length !== 1) throw new InvalidParameter(`say --disk, and which one: ${names}`)
  const disk = name === undefined ? disks[0]! : disks.find(one => one.name === name)
  if (!disk) throw new NotFound(`the restore point has no disk '${name}'; it has ${names}`)
  await using images = new Images()
  const other = images.reader(await images.openReadOnly({ name: against, format }))
  const work = compareDisk({ reader, disk, other })
  using shown = new Progress(`comparing ${clean(disk.name)}`, disk.size)
  let step = await work.next()
  for (; !step.done; step = await work.next()) shown.at(step.value.done, step.value.total)
  const { differs } = step.value
  const sizes = { size: disk.size, 'other-size': other.size }
  const point = shortPoint(key)
  if (json) printJson({ point, disk: disk.name, against, ...sizes, differs })
  else {
    for (const { offset, length } of differs) print(`${clean(disk.name)} ${offset} ${length}\n`)
    const bytes = differs.reduce((sum, { length }) => sum + length, 0)
    const longer = disk.size === other.size ? '' : `; it has ${other.size} bytes, and the disk had ${disk.size}`
    print(
      differs.length === 0
        ? `${against} is as disk ${clean(disk.name)} was at ${point}${longer}\n`
        : `${against} differs from disk ${clean(disk.name)} at ${point} in ${plural(differs.length, 'place')}, ${formatSize(bytes)} of chunks${longer}\n`,
    )
  }
  return differs.length > 0 ? exitCodes.failed : undefined
}
