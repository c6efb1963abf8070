// Portable archives as people name them, and the restore points in them.

import { InvalidParameter, NotFound } from '../base/errors.ts'
import type { Archive, ArchivedPoint } from '../archive/archive.ts'
import { pointKey, shortPoint } from './open-repository.ts'

/** Where a repository is asked for: an archive is a file that is called so. */
export const isArchive = (name: string) => /\.zip$/i.test(name)

/** By its name, the beginning of it, `MACHINE/latest`, or `latest` where there is one machine. @throws NotFound */
export function findArchived({ points, location }: Archive, name: string): ArchivedPoint {
  const latest = /^(?:(.*)\/)?latest$/s.exec(name)
  const machines = new Set(points.map(({ manifest }) => manifest.machine))
  const begun = latest
    ? points.filter(({ key }) => (latest[1] === undefined ? machines.size === 1 : key.startsWith(`${pointKey(latest[1])}/`)))
    : points.filter(({ key }) => key.startsWith(pointKey(name)))
  const sorted = [...begun].sort((a, b) => (a.key < b.key ? -1 : 1))
  const exact = sorted.find(({ key }) => key === pointKey(name)) ?? (latest ? sorted.at(-1) : undefined)
  if (exact) return exact
  if (sorted.length === 1) return sorted[0]!
  if (sorted.length > 1) throw new InvalidParameter(`several restore points begin with '${name}': ${some(sorted)}`)
  throw new NotFound(`there is no restore point '${name}' in '${location}'; it has ${some(points) || 'none'}`)
}

const some = (list: readonly ArchivedPoint[]) =>
  list
    .slice(0, 5)
    .map(({ key }) => shortPoint(key))
    .join(', ')
