// What is where in an export, a page at a time: for programs that have no NBD client (/map). It is the answer to a BLOCK_STATUS, as JSON.
//
// A page ends where it has as many extents as were asked for, or has taken long enough; `next` says where the following one begins. The view of a
// session does not change meanwhile, so its pages fit each other; a disk that is written may be another one at each.

import { Allocation, BASE_ALLOCATION, DIRTY, QEMU_DIRTY_BITMAP } from 'nbd-client-ts/protocol'
import pLimit from 'p-limit'
import { InvalidParameter, NotFound } from '../base/errors.ts'
import { statusOf } from '../nbd-server/block-status.ts'
import type { NodeExports } from '../nbd-server/node-exports.ts'

/** As `stillpoint disk map --json` has them. */
interface MapExtent {
  readonly start: number
  readonly length: number
  readonly data: boolean
  readonly zero: boolean
  /** The bitmap's bit, where one was asked for. */
  readonly dirty?: boolean
}

export interface MapPage {
  readonly export: string
  readonly size: number
  readonly bitmap?: string
  readonly extents: readonly MapExtent[]
  /** Where to ask for the rest of what was asked for; undefined where there is none. */
  readonly next?: number
}

const KEYS = ['export', 'bitmap', 'offset', 'length', 'limit']
const USUAL_EXTENTS = 1000
const MOST_EXTENTS = 10_000
/** Others wait: each is work for a disk that guests use. */
const AT_ONCE = 2

export class Maps {
  readonly #turns = pLimit(AT_ONCE)

  constructor(private readonly exports: NodeExports) {}

  /** `gone`: nobody waits for it any more. @throws InvalidParameter, NotFound, and what the disk throws */
  page(query: URLSearchParams, gone: () => boolean): Promise<MapPage> {
    const wanted = readQuery(query)
    return this.#turns(() => this.#page(wanted, gone))
  }

  async #page({ id, bitmap, offset, length, limit }: ReturnType<typeof readQuery>, gone: () => boolean): Promise<MapPage> {
    using exported = this.exports.get(id).look()
    const { contexts, size } = exported
    const named = (name: string) => contexts.filter(context => context.name === name)
    const chosen = [...named(BASE_ALLOCATION), ...(bitmap === undefined ? [] : named(`${QEMU_DIRTY_BITMAP}${bitmap}`))]
    if (bitmap !== undefined && chosen.length < 2) {
      const there = contexts
        .filter(({ name }) => name.startsWith(QEMU_DIRTY_BITMAP))
        .map(({ name }) => name.slice(QEMU_DIRTY_BITMAP.length))
      throw new NotFound(`The export ${id} has no bitmap ${bitmap}; it has ${there.join(', ') || 'none'}`)
    }
    if (offset > size) throw new InvalidParameter(`offset is ${offset}, and ${id} ends at ${size}`)
    const end = Math.min(size, offset + length)
    const page = { export: id, size, ...(bitmap !== undefined && { bitmap }) }
    if (offset === end) return { ...page, extents: [] }
    const terms = { limit, mayGrow: () => true, gone }
    const told = await statusOf(
      chosen.map((context, index) => ({ id: index, context })),
      { offset, length: end - offset },
      terms,
    )
    const extents = extentsOf(told, offset, limit)
    const { start, length: last } = extents.at(-1)!
    return { ...page, extents, ...(start + last < end && { next: start + last }) }
  }
}

interface Told {
  readonly lengths: readonly number[]
  readonly flags: readonly number[]
}

/** Side by side: an extent ends where one of the contexts changes. */
function extentsOf([allocation, bitmap]: readonly Told[], offset: number, most: number): MapExtent[] {
  const extents: MapExtent[] = []
  const left = [allocation?.lengths[0] ?? 0, bitmap?.lengths[0] ?? Infinity] as [number, number]
  for (let start = offset, one = 0, other = 0; one < allocation!.lengths.length && extents.length < most;) {
    const length = Math.min(...left)
    const flags = allocation!.flags[one]!
    const dirty = bitmap && { dirty: (bitmap.flags[other]! & DIRTY) !== 0 }
    extents.push({ start, length, data: (flags & Allocation.HOLE) === 0, zero: (flags & Allocation.ZERO) !== 0, ...dirty })
    start += length
    if ((left[0] -= length) === 0) left[0] = allocation!.lengths[++one] ?? 0
    if ((left[1] -= length) === 0) left[1] = bitmap?.lengths[++other] ?? Infinity
  }
  return extents
}

function readQuery(query: URLSearchParams) {
  for (const key of query.keys()) {
    if (!KEYS.includes(key)) throw new InvalidParameter(`there is no ${key}; there are ${KEYS.join(', ')}`)
    if (query.getAll(key).length > 1) throw new InvalidParameter(`${key} is there more than once`)
  }
  const number = (key: string, otherwise: number) => {
    const text = query.get(key)
    if (text === null) return otherwise
    const value = Number(text)
    if (!/^\d+$/.test(text) || !Number.isSafeInteger(value))
      throw new InvalidParameter(`${key} must be a number of bytes, not '${text}'`)
    return value
  }
  const id = query.get('export')
  if (id === null) throw new InvalidParameter('say which export: export=MACHINE/DISK, or SESSION/DISK of an open session')
  const limit = number('limit', USUAL_EXTENTS)
  if (limit < 1 || limit > MOST_EXTENTS) throw new InvalidParameter(`limit is from 1 to ${MOST_EXTENTS}`)
  return {
    id,
    bitmap: query.get('bitmap') ?? undefined,
    offset: number('offset', 0),
    length: number('length', Number.MAX_SAFE_INTEGER),
    limit,
  }
}
