// Verification, for `repo check` and `point verify`: what is told of it, and what it exits with.

import { Option } from 'commander'
import { formatSize } from '../base/units.ts'
import type { Repository } from '../repository/repository.ts'
import type { VerifyLevel } from '../repository/verify.ts'
import { exitCodes } from './exit-codes.ts'
import { clean, plural } from './format.ts'
import { shortPoint } from './open-repository.ts'
import { print, printJson } from './output.ts'

export interface CheckOptions {
  readonly level: VerifyLevel
  readonly quarantine?: boolean
  readonly points?: readonly string[]
}

const levels: readonly VerifyLevel[] = ['quick', 'scrub', 'deep']

export const levelOption = (level: VerifyLevel) =>
  new Option('--level <level>', 'how closely to look').choices(levels).default(level)

/** The exit code, where there is damage. */
export async function checkRepository(repository: Repository, { level, quarantine, points }: CheckOptions, json: boolean) {
  const [{ verify }, { Sealer }] = await Promise.all([import('../repository/verify.ts'), import('../repository/sealer.ts')])
  await using sealer = Sealer.start({ maxPlain: 4 << 20 })
  const work = verify(repository, { level, sealer, ...(quarantine && { quarantine }), ...(points && { points }) })
  let step = await work.next()
  while (!step.done) step = await work.next()
  const { packs, bytes, damagedPacks, damagedPoints } = step.value
  const damaged = damagedPacks.length + damagedPoints.length > 0
  if (json)
    printJson({
      level,
      packs,
      bytes,
      'damaged-packs': damagedPacks,
      'damaged-points': damagedPoints.map(({ key, ...rest }) => ({ point: shortPoint(key), ...rest })),
    })
  else {
    for (const { key, what } of damagedPacks) print(`damaged: ${key}: ${clean(what)}\n`)
    for (const { key, disk, what, ranges } of damagedPoints) {
      const lost = ranges.reduce((sum, { length }) => sum + length, 0)
      print(
        `damaged: ${shortPoint(key)}${disk ? ` ${clean(disk)}` : ''}: ${clean(what)}${lost > 0 ? ` (${formatSize(lost)})` : ''}\n`,
      )
    }
    print(
      `${level}: ${plural(packs, 'pack')}${bytes > 0 ? `, ${formatSize(bytes)} read` : ''}; ${damaged ? 'there is damage' : 'all is well'}\n`,
    )
  }
  return damaged ? exitCodes.damageFound : undefined
}
