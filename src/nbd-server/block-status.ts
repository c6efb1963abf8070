// The answer to BLOCK_STATUS: what each chosen context says of a range.
//
// All contexts are cut at the same place, so that whoever adds up the lengths of one knows about all; and as far as one reply can go
// it covers the whole request.

import assert from 'node:assert/strict'
import { setImmediate as turn } from 'node:timers/promises'
import {
  blockStatus,
  blockStatusExt,
  blockStatusExtExtent,
  blockStatusExtent,
  blockStatusPayload,
  MAX_EXTENTS,
  ReplyType,
} from 'nbd-client-ts/protocol'
import { InvalidParameter } from '../base/errors.ts'
import { endOf, type Range } from '../base/ranges.ts'
import type { Context, ContextExtent } from './context.ts'
import type { SelectedContext } from './meta-contexts.ts'
import type { ReplyMode } from './offer.ts'
import type { Replies } from './replies.ts'
import type { Request } from './request.ts'

/** How many extents are looked at before others get their turn. */
const TURN = 8192
/** Who asks about a disk in a million pieces gets the first of them after this long. */
const PATIENCE_MS = 3000
/** After how many more extents the answer's memory is asked for. */
const GROWTH = 4096

export interface StatusTerms {
  /** No more than this many extents of each context. */
  readonly limit: number
  /** Asked now and then whether there may be so many more; false ends the answer where it is. */
  readonly mayGrow: (extents: number) => boolean
  /** Nobody waits for the answer any more. */
  readonly gone: () => boolean
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

async function ask(context: Context, range: Range, { limit, mayGrow, gone }: StatusTerms): Promise<Told> {
  const told: Told = { lengths: [], flags: [], covered: 0 }
  const until = performance.now() + PATIENCE_MS
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
      if (count >= limit || (count % GROWTH === GROWTH - 1 && !mayGrow(GROWTH))) return false
      told.lengths.push(more)
      told.flags.push(flags)
    }
    told.covered = end
    return true
  }
  /** False when it has taken long enough. */
  const nextTurn = async () => {
    await turn()
    return !gone() && performance.now() < until
  }
  const extents = context.extents(range)
  // An iterator that need not wait is not made to: there may be a million extents.
  if (Symbol.iterator in extents) {
    for (const extent of extents) {
      if (!add(extent)) break
      if (++seen % TURN === 0 && !(await nextTurn())) break
    }
  } else {
    for await (const extent of extents) {
      if (!add(extent)) break
      if (++seen % TURN === 0 && !(await nextTurn())) break
    }
  }
  assert(told.covered > 0, `${context.name} says nothing about ${range.length} bytes at ${range.offset}`)
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

/** The answer's size grows by this much with each extent, in bytes. */
export const extentSize = (mode: ReplyMode) => (mode === 'extended' ? blockStatusExtExtent : blockStatusExtent).size

/** One chunk for each context, in the order of their ids. */
export function sendStatus(replies: Replies, request: Request, contexts: readonly SelectedContext[], told: readonly Told[]) {
  const isExtended = replies.mode === 'extended'
  const type = isExtended ? ReplyType.BLOCK_STATUS_EXT : ReplyType.BLOCK_STATUS
  const header = isExtended ? blockStatusExt.size : blockStatus.size
  for (const [index, { id }] of contexts.entries()) {
    const { lengths, flags } = told[index]!
    const count = lengths.length
    const chunk = replies.chunk(request, type, index === contexts.length - 1, header + count * extentSize(replies.mode))
    const at = replies.chunkHeader
    if (isExtended) {
      blockStatusExt.encode({ contextId: id, count }, chunk, at)
      writeWide(chunk, at + header, lengths, flags)
    } else {
      blockStatus.encode({ contextId: id }, chunk, at)
      writeNarrow(chunk, at + header, lengths, flags)
    }
  }
}

// By hand, as there may be a million: the tables' `encode` would take as long as the bitmap.

function writeNarrow(into: Buffer, start: number, lengths: readonly number[], flags: readonly number[]) {
  const { size, at } = blockStatusExtent
  for (let index = 0, here = start; index < lengths.length; index++, here += size) {
    into.writeUInt32BE(lengths[index]!, here + at.length)
    into.writeUInt32BE(flags[index]!, here + at.status)
  }
}

function writeWide(into: Buffer, start: number, lengths: readonly number[], flags: readonly number[]) {
  const { size, at } = blockStatusExtExtent
  for (let index = 0, here = start; index < lengths.length; index++, here += size) {
    const length = lengths[index]!
    into.writeUInt32BE(Math.floor(length / 2 ** 32), here + at.length)
    into.writeUInt32BE(length % 2 ** 32, here + at.length + 4)
    into.writeUInt32BE(0, here + at.status)
    into.writeUInt32BE(flags[index]!, here + at.status + 4)
  }
}

/** What the payload of a BLOCK_STATUS asks for: a range, and some of the contexts. Throws InvalidParameter. */
export function readFilter(payload: Buffer, offset: number, size: number, contexts: readonly SelectedContext[]) {
  const length = Number(blockStatusPayload.decode(payload).length)
  if (length === 0) throw new InvalidParameter('a BLOCK_STATUS of no bytes')
  if (offset + length > size) throw new InvalidParameter(`BLOCK_STATUS reaches past the end of the export, which is at ${size}`)
  const ids = new Set<number>()
  for (let at = blockStatusPayload.size; at < payload.length; at += 4) {
    const id = payload.readUInt32BE(at)
    if (ids.has(id) || !contexts.some(context => context.id === id))
      throw new InvalidParameter(`context ${id} was not chosen, or is asked for twice`)
    ids.add(id)
  }
  return { range: { offset, length }, contexts: contexts.filter(({ id }) => ids.has(id)) }
}
