// The answer to BLOCK_STATUS: what each chosen context says of a range.
//
// All contexts are cut at the same place, so that whoever adds up the lengths of one knows about all; and as far as one reply can go
// it covers the whole request.

import { blockStatus, blockStatusExtent, MAX_EXTENTS, ReplyType } from 'nbd-client-ts/protocol'
import { setImmediate as turn } from 'node:timers/promises'
import { endOf, type Range } from '../base/ranges.ts'
import type { Context, ContextExtent } from './context.ts'
import type { SelectedContext } from './meta-contexts.ts'
import type { Replies } from './replies.ts'
import type { Request } from './request.ts'

/** How many extents are looked at before others get their turn. */
const TURN = 8192
/** After how many more extents the answer's memory is asked for. */
const GROWTH = 4096

export interface StatusTerms {
  /** No more than this many extents of each context. */
  readonly limit: number
  /** Asked now and then; false ends the answer where it is. */
  readonly mayGrow: (bytes: number) => boolean
}

/** What a context says, alike neighbours joined: each length with its flags. */
interface Told {
  lengths: number[]
  flags: number[]
  /** Bytes from the range's start that are covered. */
  covered: number
}

/** Asks each context, and cuts what they say at the same place. */
export async function statusOf(contexts: readonly SelectedContext[], range: Range, terms: StatusTerms) {
  let reach = range.length
  const told: Told[] = []
  for (const { context } of contexts) {
    const one = await ask(context, { offset: range.offset, length: reach }, terms)
    reach = Math.min(reach, one.covered)
    told.push(one)
  }
  for (const one of told) cut(one, reach)
  return told
}

async function ask(context: Context, range: Range, { limit, mayGrow }: StatusTerms): Promise<Told> {
  const told: Told = { lengths: [], flags: [], covered: 0 }
  let seen = 0
  /** False when there is no room for it. */
  const add = ({ offset, length, flags }: ContextExtent) => {
    // What lies outside was not asked for, whatever a context says.
    const end = Math.min(offset + length, endOf(range)) - range.offset
    const more = end - told.covered
    if (more <= 0) return true
    const count = told.flags.length
    if (count > 0 && told.flags[count - 1] === flags) told.lengths[count - 1]! += more
    else {
      if (count >= limit || (count % GROWTH === GROWTH - 1 && !mayGrow(GROWTH * blockStatusExtent.size))) return false
      told.lengths.push(more)
      told.flags.push(flags)
    }
    told.covered = end
    return true
  }
  const extents = context.extents(range)
  // An iterator that need not wait is not made to: there may be a million extents.
  if (Symbol.iterator in extents) {
    for (const extent of extents) {
      if (!add(extent)) break
      if (++seen % TURN === 0) await turn()
    }
  } else {
    for await (const extent of extents) {
      if (!add(extent)) break
      if (++seen % TURN === 0) await turn()
    }
  }
  return told
}

function cut(told: Told, reach: number) {
  let at = told.covered
  while (at > reach) {
    const length = told.lengths.pop()!
    at -= length
    if (at < reach) {
      told.lengths.push(reach - at)
      break
    }
    told.flags.pop()
  }
  told.covered = reach
}

export const maxExtents = (one: boolean) => (one ? 1 : MAX_EXTENTS)

/** One chunk for each context, in the order of their ids. */
export function sendStatus(replies: Replies, request: Request, contexts: readonly SelectedContext[], told: readonly Told[]) {
  for (const [index, { id }] of contexts.entries()) {
    const { lengths, flags } = told[index]!
    const length = blockStatus.size + lengths.length * blockStatusExtent.size
    const chunk = replies.chunk(request, ReplyType.BLOCK_STATUS, index === contexts.length - 1, length)
    let at = blockStatus.encode({ contextId: id }, chunk, replies.chunkHeader)
    for (let extent = 0; extent < lengths.length; extent++) {
      chunk.writeUInt32BE(lengths[extent]!, at + blockStatusExtent.at.length)
      chunk.writeUInt32BE(flags[extent]!, at + blockStatusExtent.at.status)
      at += blockStatusExtent.size
    }
  }
}
