// Verification, for `repo check` and `point verify`: what is told of it, and what it exits with.

import { Option } from 'commander'
import { Fault } from '../base/errors.ts'
import { formatSize, parseSize } from '../base/units.ts'
import type { Repository } from '../repository/repository.ts'
import type { Verified, VerifyLevel } from '../repository/verify.ts'
import { exitCodes } from './exit-codes.ts'
import { Misuse } from './failure.ts'
import { clean, plural } from './format.ts'
import { shortPoint } from './open-repository.ts'
import { note, print, printJson } from './output.ts'
import { Progress } from './progress.ts'

export interface CheckOptions {
  readonly level: VerifyLevel
  readonly quarantine?: boolean
  readonly points?: readonly string[]
  /** As it was given: a size. */
  readonly budget?: string
}

const levels: readonly VerifyLevel[] = ['quick', 'scrub', 'deep']

export const levelOption = (level: VerifyLevel) =>
  new Option('--level <level>', 'how closely to look').choices(levels).default(level)

/** The exit code, where there is damage. */
export async function checkRepository(
  repository: Repository,
  { level, quarantine, points, budget: text }: CheckOptions,
  json: boolean,
) {
  const budget = text === undefined ? undefined : parseSize(text)
  if (text !== undefined && !budget) throw new Misuse(`--budget must be a size such as 100G, not '${text}'`)
  if (budget !== undefined && level === 'quick') throw new Misuse('--budget goes with --level scrub or deep: quick reads nothing')
  const [{ verify }, { Sealer }, { recordCheck }] = await Promise.all([
    import('../repository/verify.ts'),
    import('../repository/sealer.ts'),
    import('../repository/last-checks.ts'),
  ])
  await using sealer = Sealer.start({ maxPlain: 4 << 20 })
  const work = verify(repository, { level, sealer, budget, ...(quarantine && { quarantine }), ...(points && { points }) })
  const verified = await follow(work, points ? `verifying ${points.map(shortPoint).join(', ')}` : `checking (${level})`)
  const { packs, bytes, complete, damagedPacks, damagedPoints, damagedSessions } = verified
  const damaged = damagedPacks.length + damagedPoints.length + damagedSessions.length > 0
  // One point is not the repository.
  if (!points) await tellOthers(() => recordCheck(repository.target, level, verified))
  if (json)
    printJson({
      level,
      packs,
      bytes,
      complete,
      'damaged-packs': damagedPacks,
      'damaged-sessions': damagedSessions,
      'damaged-points': damagedPoints.map(({ key, ...rest }) => ({ point: shortPoint(key), ...rest })),
    })
  else {
    for (const { key, what } of [...damagedPacks, ...damagedSessions]) print(`damaged: ${key}: ${clean(what)}\n`)
    for (const { key, disk, what, ranges } of damagedPoints) {
      const lost = ranges.reduce((sum, { length }) => sum + length, 0)
      print(
        `damaged: ${shortPoint(key)}${disk ? ` ${clean(disk)}` : ''}: ${clean(what)}${lost > 0 ? ` (${formatSize(lost)})` : ''}\n`,
      )
    }
    print(
      `${level}: ${[...(points ? [] : [plural(packs, 'pack')]), ...(bytes > 0 || points ? [`${formatSize(bytes)} read`] : [])].join(', ')}; ${damaged ? 'there is damage' : 'all is well'}\n`,
    )
    if (!complete) note('The budget is used up; the next run goes on from there.')
  }
  return damaged ? exitCodes.damageFound : undefined
}

/** To its end, and shows how far it is. */
async function follow(work: AsyncGenerator<Verified, Verified>, what: string): Promise<Verified> {
  using shown = new Progress(what, 0)
  let step = await work.next()
  for (; !step.done; step = await work.next()) {
    const { packs, bytes } = step.value
    shown.says(`${packs > 0 ? `${plural(packs, 'pack')}, ` : ''}${formatSize(bytes)} read`)
  }
  return step.value
}

/** Whoever looks may only be let read. */
async function tellOthers(write: () => Promise<void>) {
  try {
    await write()
  } catch (error) {
    if (!(error instanceof Fault)) throw error
    note(`That it was checked cannot be written down there, so metrics and the doctor do not know of it: ${error.message}`)
  }
}
