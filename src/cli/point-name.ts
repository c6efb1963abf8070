// How people name a restore point: as it is listed, by as much of that as only one has, or as the latest of a machine.

import { InvalidParameter, NotFound } from '../base/errors.ts'
import { isOfTheFuture } from '../base/time.ts'
import type { Repository } from '../repository/repository.ts'
import { pointKey, shortPoint } from './open-repository.ts'
import { note } from './output.ts'

export const pointArgument = {
  '<point>':
    'as `point list` shows it, MACHINE/TIME-ID, or as much of it as only one has; MACHINE/latest for the newest complete one',
}

/** Its key. @throws NotFound, or InvalidParameter where several are meant */
export async function findPointKey(repository: Repository, name: string): Promise<string> {
  const wanted = pointKey(name)
  const slash = wanted.lastIndexOf('/')
  const machine = wanted.slice(0, slash + 1)
  const keys = (await repository.pointKeys()).filter(key => key.startsWith(machine))
  if (keys.includes(wanted)) return wanted
  if (wanted.slice(slash + 1) === 'latest') return latest(repository, keys, name)
  const begun = slash < 'points/'.length ? [] : keys.filter(key => key.startsWith(wanted))
  const there = []
  for (const key of begun) if (await repository.findPoint(key)) there.push(key)
  if (there.length === 1) return there[0]!
  if (there.length === 0)
    throw new NotFound(
      `there is no restore point '${name}' in ${repository.target.location}; "stillpoint point list" shows what there is`,
    )
  throw new InvalidParameter(`several restore points begin with '${name}': ${there.slice(0, 5).map(shortPoint).join(', ')}`)
}

/** Complete ones only. */
async function latest(repository: Repository, keys: readonly string[], name: string) {
  for (const key of keys.toReversed()) {
    const point = await repository.findPoint(key)
    if (!point?.manifest.complete) continue
    if (isOfTheFuture(new Date(point.manifest.time)))
      note(
        `${shortPoint(key)} is the latest by its time, which is yet to come: if a clock was wrong when it was made, look at "stillpoint point list", and name the one that you mean`,
      )
    return key
  }
  throw new NotFound(`there is no restore point '${name}': ${repository.target.location} has no complete one of this machine`)
}
