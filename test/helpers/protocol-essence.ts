// What of a state of the protocol's model matters to what can happen next. States that differ only in the rest are one, so that all of them
// can be looked at: a writer's view of the state once it has loaded its index, the blobs of a pack that no index will name again, ...
//
// Each rule is one of two kinds. Either nobody will read the value before it is written again. Or the next step of somebody changes nothing
// else, whatever the others do meanwhile: then it is as if it had been done. protocol.test.ts compares what a state and its essence lead to.

import {
  AT,
  AVOID,
  COLLECT_AT,
  COLLECT_LIST,
  COLLECT_TAG,
  COLLECTIONS,
  COMPACT,
  CONTENT,
  DEATHS,
  DELETING,
  DELTA_EPOCH,
  DELTAS,
  ENDING,
  EPOCH,
  EXIST,
  finish,
  FORGET_AT,
  FORGET_POINT,
  NEED,
  PACKS,
  PARENT,
  PHASE,
  PLAN,
  POINT,
  READER_AGAIN,
  READER_AT,
  READER_POINT,
  SEEN_EPOCH,
  SESSION,
  SESSION_EPOCH,
  THROUGH,
  type Cast,
} from './protocol-model.ts'
import type { Fence } from './protocol-world.ts'

/** Changes the state into the one that stands for all that are alike. */
export function keepEssence(state: Uint8Array, cast: Cast, without: Fence | undefined) {
  const s = state
  const { collections } = cast
  if (!without) goOnUnseen(s, cast)
  for (let me = 1; me < PACKS; me++) {
    // Taken for dead, it can begin nothing and commit nothing.
    if (s[SESSION + me] === 3 && without !== 'swap commit' && (s[AT + me] === 1 || s[AT + me] === 7)) s[AT + me] = 9
    // Somebody has finished its commit.
    if (s[AT + me] === 8 && s[POINT + me] && without !== 'tombstone' && (s[SESSION + me] === 0 || s[ENDING]! & (1 << me)))
      s[AT + me] = 9
    const at = s[AT + me]!
    if (s[SESSION + me] === 0) s[ENDING]! &= ~(1 << me)
    if (at === 0 || at > 3) s[SEEN_EPOCH + me] = 0
    if (at !== 4 && (without !== 'pin epoch' || at > 4)) s[AVOID + me] = 0
    if (at !== 3 && at !== 4) s[PARENT + me] = 0
    if (at > 6 && s[SESSION + me] !== 1) s[SESSION_EPOCH + me] = 0
  }
  const readerAt = s[READER_AT]!
  if (readerAt !== 4) s[AVOID] = 0
  if (readerAt !== 5) s[PARENT] = 0
  if (readerAt === 9) s[READER_POINT] = s[READER_AGAIN] = 0
  if (s[FORGET_AT] === 1) {
    const point = s[FORGET_POINT]!
    const inOne = readerAt === 9 || (readerAt !== 0 && s[READER_POINT] !== point)
    if (s[POINT + point] !== 1 || inOne) s[FORGET_AT] = s[FORGET_POINT] = 0
  }
  // --- the collector
  // It begins, or goes on with the plan that is there.
  if (s[COLLECT_AT] === 0 && (s[PHASE] !== 0 || s[COLLECTIONS]! < collections)) {
    s[COLLECT_AT] = s[PHASE] === 0 ? (without === 'finish commits' ? 3 : 1) : s[PHASE] === 1 ? 7 : 14
    s[COLLECT_LIST] = 0
  }
  if (s[COLLECT_AT] === 2 || s[COLLECT_AT] === 9) {
    for (let me = 1; me < PACKS; me++) if (s[SESSION + me] === 0) s[COLLECT_LIST]! &= ~(1 << me)
    if (s[COLLECT_LIST] === 0) s[COLLECT_AT]!++
  }
  if (s[COLLECT_AT] === 16 && without !== 'fence') {
    const session = s[COLLECT_LIST]!
    if (s[SESSION + session] !== 1 || s[SESSION_EPOCH + session] !== s[COLLECT_TAG]) {
      s[COLLECT_AT] = 7
      s[COLLECT_LIST] = s[COLLECT_TAG] = 0
    }
  }
  if (s[COLLECT_AT] === 0 && s[PHASE] === 0 && s[COLLECTIONS]! >= collections) s[DEATHS] = 0
  // --- packs, and what the index says of them
  const loaded = s[COLLECT_AT] === 13 ? s[COLLECT_TAG]! : 0
  for (let pack = 0; pack < PACKS; pack++) {
    const bit = 1 << pack
    // The next index has all from the epoch on that the plan began, or none of what there is.
    if (!(s[DELTAS]! & bit) || s[DELTA_EPOCH + pack]! < s[THROUGH]!) {
      s[DELTAS]! &= ~bit
      s[DELTA_EPOCH + pack] = 0
    } else if (s[PHASE] !== 1 || s[DELTA_EPOCH + pack]! < s[EPOCH]!) s[DELTA_EPOCH + pack] = s[THROUGH]!
    const isNamed = (s[DELTAS]! | s[COMPACT]! | loaded) & bit
    if (!isNamed && (pack === 0 || s[AT + pack]! > 6)) s[CONTENT + pack] = 0
    if (!(s[EXIST]! & bit)) {
      s[DELETING]! &= ~bit
      // It was there when it was condemned, so it will not come any more.
      if (!isNamed) {
        s[PLAN]! &= ~bit
        for (let who = 0; who < PACKS; who++) s[AVOID + who]! &= ~bit
      }
    }
    const mayCommit = pack > 0 && s[AT + pack]! > 4 && s[AT + pack]! < 9 && (s[SESSION + pack] !== 3 || without !== undefined)
    const isThere =
      s[POINT + pack] === 1 || s[SESSION + pack] === 2 || (without === 'fence' && pack > 0 && s[SESSION + pack] === 3)
    const isRead = readerAt > 0 && readerAt < 9 && s[READER_POINT] === pack
    if (!mayCommit && !isThere && !isRead) s[NEED + pack] = 0
  }
}

/** What nobody will look at any more has happened as soon as it can: the last collection has listed all that it will. */
function goOnUnseen(s: Uint8Array, { collections, writers }: Cast) {
  if (s[COLLECTIONS]! < collections) return
  const over = isOver(s, { collections })
  if (!over && s[COLLECT_AT]! < 7) return
  // Packs that come now are listed by nobody.
  for (let me = 1; me < PACKS; me++)
    if (s[AT + me] === 5) {
      s[EXIST]! |= 1 << me
      s[AT + me] = 6
    }
  if (!over && (s[COLLECT_AT]! < 14 || s[COLLECT_AT] === 16)) return
  // Sessions neither.
  for (let me = 1; me < PACKS; me++) {
    if (s[AT + me] === 8) {
      finish(s, me)
      s[AT + me] = 9
    }
    if (s[ENDING]! & (1 << me)) s[SESSION + me] = 0
  }
  if (!over) return
  // The later a pack is deleted the fewer miss it.
  s[EXIST]! &= ~s[DELETING]!
  // The state stays as it is, so it does not matter when who reads it.
  for (let me = 1; me <= writers.length; me++) {
    const isParent = writers[me - 1] === 'parent'
    const isDead = s[SESSION + me] === 3
    if (s[AT + me] === 3) s[AT + me] = s[SESSION_EPOCH + me] === s[EPOCH] ? 4 : isDead ? 9 : 1
    if (s[AT + me]! < 2 && !isDead) {
      s[SESSION + me] = 1
      s[SESSION_EPOCH + me] = s[EPOCH]!
      s[SEEN_EPOCH + me] = s[EPOCH]!
      s[AT + me] = isParent ? 2 : 4
    }
    s[AVOID + me] = s[AT + me] === 4 ? s[AVOID + me]! : 0
  }
  if (s[READER_AT] === 6 && s[SESSION] === 1) s[READER_AT] = 3
  if (s[READER_AT] === 3) {
    s[READER_AT] = 4
    s[AVOID] = 0
  }
}

/** There is no collector any more. */
export const isOver = (state: Uint8Array, { collections }: Pick<Cast, 'collections'>) =>
  state[COLLECT_AT] === 0 && state[PHASE] === 0 && state[COLLECTIONS]! >= collections
