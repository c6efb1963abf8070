// What a server says of a range, for several metadata contexts at once.
//
// Contexts are answered side by side, each with extents of its own lengths; here they are cut at each other's borders, so that every
// extent has one status of each context. A server may stop early, and at a different place for each context: what all of them cover
// is used, and the next request begins behind it.

import type { Range } from './ranges.ts'
import { alignDown, alignUp } from './ranges.ts'
import type { BlockStatus } from './status-request.ts'

export interface NbdExtent<Status = number> extends Range {
  /** By the contexts' names. */
  readonly status: Readonly<Record<string, Status>>
}

interface Ask {
  readonly range: Range
  readonly contexts: readonly string[]
  /** Neighbours that are alike become one. */
  readonly coalesce: boolean
  readonly minimumBlock: number
  /** The longest request. */
  readonly most: number
  /** Of the export. */
  readonly size: number
}

type Status = number | bigint

/** Covers the range from its start to its end, in order and without gaps. */
export async function* extents(ask: Ask, blockStatus: (range: Range) => Promise<BlockStatus>): AsyncGenerator<NbdExtent<Status>> {
  const { range, contexts, coalesce, minimumBlock, most, size } = ask
  const end = range.offset + range.length
  const asked = Math.min(alignUp(end, minimumBlock), size)
  let held: { offset: number; length: number; status: Status[] } | undefined
  const named = ({ offset, length, status }: NonNullable<typeof held>): NbdExtent<Status> => ({
    offset,
    length,
    status: Object.fromEntries(contexts.map((context, index) => [context, status[index]!])),
  })
  for (let at = alignDown(range.offset, minimumBlock); at < end;) {
    const answer = await blockStatus({ offset: at, length: Math.min(asked - at, most) })
    for (const { length, status } of sideBySide(contexts, answer)) {
      const offset = Math.max(at, range.offset)
      at += length
      const useful = Math.min(at, end) - offset
      if (useful <= 0) continue
      if (held && coalesce && status.every((value, index) => value === held!.status[index])) held.length += useful
      else {
        if (held) yield named(held)
        held = { offset, length: useful, status }
      }
    }
  }
  if (held) yield named(held)
}

/** As far as all contexts reach. */
function* sideBySide(contexts: readonly string[], answer: BlockStatus) {
  const lists = contexts.map(context => answer.get(context)!)
  const index = lists.map(() => 0)
  const left = lists.map(list => list.lengths[0]!)
  for (;;) {
    const length = Math.min(...left)
    yield { length, status: lists.map((list, which) => list.statuses[index[which]!]!) }
    for (let which = 0; which < lists.length; which++) {
      left[which]! -= length
      if (left[which]! > 0) continue
      index[which]!++
      if (index[which]! >= lists[which]!.lengths.length) return
      left[which] = lists[which]!.lengths[index[which]!]!
    }
  }
}
