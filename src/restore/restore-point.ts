// The block driver `restore-point`: a disk of a restore point as a node, straight from a repository of the configuration. It is read-only; an
// overlay over it is a disk that can be used at once, and block-stream makes that one independent.
//
// While the node is open a session in the repository keeps what it needs from being collected.

import { z } from 'zod'
import { InvalidParameter, NotFound, ReadOnly } from '../base/errors.ts'
import type { BlockDriver, BlockNode } from '../block/driver.ts'
import { openRepository, type Place } from '../push/open-place.ts'
import { RepositoryReader } from '../repository/reader.ts'
import { SharedSealers } from '../repository/shared-sealers.ts'
import { openPointDisk, POINT_CACHE } from './point-disk.ts'
import { SharedCache } from './shared-cache.ts'

const options = z.strictObject({
  repository: z.string().describe('Of the configuration'),
  point: z.string().describe('The restore point, MACHINE/TIME-ID'),
  disk: z.string().describe('Its name in the restore point'),
  'cache-size': z
    .int()
    .min(0)
    .optional()
    .describe('Bytes of what was read that are kept in memory. Default: 64 MiB, which all such nodes share'),
})

export type RestorePointOptions = z.infer<typeof options>

/** `openPlace` opens a repository's store by the repository's name. */
export function restorePoint(openPlace: (repository: string) => Promise<Place>): BlockDriver<RestorePointOptions> {
  const sealers = new SharedSealers()
  const cache = new SharedCache(POINT_CACHE)
  return {
    name: 'restore-point',
    options,
    children: {},
    async open({ repository: name, point, disk: diskName, 'cache-size': cacheBytes }, { readOnly }): Promise<BlockNode> {
      if (!readOnly) throw new ReadOnly('a restore point cannot be written; open it read-only, and put an overlay over it')
      await using parts = new AsyncDisposableStack()
      const repository = await openRepository(parts.use(await openPlace(name)))
      const reader = parts.use(await RepositoryReader.begin(repository, [`points/${point}`]))
      const { disks } = reader.points[0]!.manifest
      const disk = disks.find(({ name }) => name === diskName)
      if (!disk)
        throw new NotFound(
          `restore point '${point}' has no disk '${diskName}'; it has ${disks.map(({ name }) => `'${name}'`).join(', ')}`,
        )
      const { sealer } = parts.use(sealers.use(disk.chunkSize))
      await sealer.ready()
      return openPointDisk({
        reader,
        disk,
        sealer,
        ...(cacheBytes === undefined ? { cache } : { cacheBytes }),
        needs: parts.move(),
      })
    },
  }
}

/** For what only wants to know its options. */
export const restorePointDriver = restorePoint(async name => {
  throw new InvalidParameter(`nobody knows here where repository '${name}' is`)
})

/** How an image names the disk of a restore point that is behind it. */
export const backingNameOf = ({ repository, point, disk }: Pick<RestorePointOptions, 'repository' | 'point' | 'disk'>) =>
  `json:${JSON.stringify({ driver: 'restore-point', repository, point, disk })}`

/** What such a name says; undefined for any other. */
export function parseBackingName(name: string): Pick<RestorePointOptions, 'repository' | 'point' | 'disk'> | undefined {
  if (!name.startsWith('json:')) return undefined
  let named: unknown
  try {
    named = JSON.parse(name.slice('json:'.length))
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
  const parsed = z.object({ driver: z.literal('restore-point'), ...options.shape }).safeParse(named)
  return parsed.success ? parsed.data : undefined
}
