// A connection whose client makes small requests, many of them, or large reads, is lent to a thread, which answers what needs no decision (serve.ts).
// To hand each write to a thread and to hear of its end takes several times what the write takes; and a turn of the event loop, several times what a
// small read takes.
//
// There is only ever one owner. The main thread lends between two requests, with nothing in flight, and does nothing with the socket until it has it
// back. It asks for it before anything changes that the thread relies on: a drain (block/edge.ts), the end of the export or the server. What else
// the thread must not miss it sees in shared memory (bitmaps/shared-marks.ts).
//
// To lend and to be given back costs as much as some ten requests. So it is lent after as many writes without anything else as it was lent for in vain.

import { Command, CommandFlag as Flag, TransmissionFlag } from 'nbd-client-ts/protocol'
import type { Range } from '../../base/ranges.ts'
import type { LentFile, LentRegions } from '../../block/driver.ts'
import { WritableRegions } from '../../block/writable-regions.ts'
import type { Agreement } from '../handshake.ts'
import type { Link } from '../link.ts'
import type { Request } from '../request.ts'
import type { Traffic } from '../traffic.ts'
import { lender, type Loan } from './lender.ts'
import {
  countsOf,
  HIGHEST,
  HIGHEST_BELOW,
  LARGEST,
  LONGEST,
  READ_BYTES,
  READS,
  RECEIVED,
  SENT,
  WRITES,
  type Ask,
  type Reason,
  type Returned,
} from './terms.ts'
import { IN } from './thread-io.ts'

/** After so many writes without anything that the thread may not answer, at least and at most; the user may say another number. */
const FIRST = Number(process.env['STILLPOINT_LEND_AFTER'] ?? 64)
const LAST = 256 * FIRST
/** After so many at most where it came back with more than it could keep: there will be fewer such writes soon, as when a backup has just begun. */
const LAST_EARLY = 8 * FIRST
/** A large read counts as a write for each so many of its bytes: by so much less it takes. */
const LARGE = 32 << 10
/** And a small one for so much, since here it may be done at once. */
const SMALL_READ = 1 / 4
/** It was worth it when it was lent for so many times as many. */
const WORTH = 8
/** It came back from so many large reads: who copies asks where holes are now and then, and goes on as before. */
const MANY_LARGE = 32

/** After how many writes it is lent the next time, when it was lent after so many, and the thread has answered so many requests. */
export function nextAfter(after: number, served: number, reason: Reason) {
  if (served >= WORTH * after) return FIRST
  if (reason === 'revoked') return after
  return Math.max(after, Math.min(2 * after, reason === 'early' ? LAST_EARLY : LAST))
}

export class Lease {
  #score = 0
  #after = FIRST
  /** It is back from who copies; who has asked where holes are, and nothing else, gets his thread again at once. */
  #copies: 'no' | 'yes' | 'has asked' = 'no'
  /** The last read was a large one. */
  #isLarge = false
  #loan: Loan | undefined
  /** Is told soon that there is more that it may write. */
  #telling: Loan | undefined
  readonly #writeFlags: number

  constructor(
    private readonly link: Link,
    private readonly agreement: Agreement,
    private readonly traffic: Traffic,
    /** It is here again; what was received is still to come. With an error where nobody knows what the client was sent. */
    private readonly onReturn: (error?: Error) => void,
    /** False: it stays here, as a thread keeps no pace. */
    private readonly allowed = true,
  ) {
    this.#writeFlags = agreement.mode === 'extended' ? Flag.PAYLOAD_LEN : 0
  }

  /** The connection is somebody else's. */
  get isOut() {
    return this.#loan !== undefined
  }

  /** One more request is begun here. */
  begun({ type, flags, length }: Request) {
    if (type === Command.READ) this.#isLarge = length > LONGEST
    if (this.#copies !== 'no') this.#copies = type === Command.BLOCK_STATUS ? 'has asked' : 'no'
    if (type === Command.WRITE && length <= LONGEST && flags === this.#writeFlags) this.#score++
    else if (type !== Command.READ || length > LARGEST) this.#score = 0
    else this.#score += length > LONGEST ? length / LARGE : SMALL_READ
  }

  /** Nothing more should be begun, so that it can be lent. */
  get isWanted() {
    if (!this.allowed || (this.#score < this.#after && this.#copies !== 'has asked')) return false
    if (!lender.hasRoom) this.decline()
    return this.#score > 0 || this.#copies === 'has asked'
  }

  /** It could not be lent. */
  decline() {
    this.#score = 0
    this.#copies = 'no'
  }

  /** Nothing is in flight. False when it stays here. */
  begin(): boolean {
    this.decline()
    const { link, agreement, traffic } = this
    const { export: exported, mode, size, flags } = agreement
    const socket = link.plainSocket
    if (socket === undefined || exported.writethrough) return false
    const revoke = () => this.revoke()
    const highestWrite = () => this.#loan?.counters[HIGHEST] ?? 0
    const highestBelow = () => this.#loan?.counters[HIGHEST_BELOW] ?? 0
    const file = exported.io.lend?.({ revoke, highestWrite, highestBelow })
    if (!file) return false
    const { fd, start, regions } = file
    const through = file.through && { ...file.through, marks: termsOf(file.through.marks) }
    if (link.inbound.available > IN) return declined(file)
    const terms = {
      file: fd,
      start,
      ...(through && { through }),
      size: Math.min(size, exported.io.size),
      mode,
      readOnly: (flags & TransmissionFlag.READ_ONLY) !== 0 || file.readOnly === true,
      marks: termsOf(file.marks),
      regions: regions.map(({ terms, start }) => ({ terms, start })),
    }
    const rest = link.pause()
    this.#loan = lender.lend(
      socket,
      { ...terms, rest },
      asks => this.#asked(asks, file),
      returned => this.#returned(returned, file, counted),
    )
    if (!this.#loan) {
      declined(file)
      link.goOn(rest)
      return false
    }
    if (this.#isLarge) link.sendsPages(true)
    const { counters } = this.#loan
    const counted = traffic.lend(() => countsOf(counters))
    return true
  }

  /** Asks for it; nothing where it is here. */
  revoke() {
    this.#loan?.revoke()
    if (this.link.destroyed) this.#loan?.hangUp()
  }

  /** Does it, and lets the thread look again. What cannot be done fails once more where the write is made here, and is told there. */
  #asked(asks: readonly Ask[], { regions }: LentFile) {
    const loan = this.#loan!
    for (const { regions: at, ...range } of asks)
      bring(regions[at]!, range).then(
        isThere => (isThere ? this.#tellSoon(loan) : loan.revoke()),
        () => loan.revoke(),
      )
  }

  /** Once for all that is done in a turn. */
  #tellSoon(loan: Loan) {
    if (this.#telling === loan) return
    this.#telling = loan
    setImmediate(() => {
      this.#telling = undefined
      loan.tell()
    })
  }

  #returned(returned: Returned | Error, file: LentFile, counted: Disposable) {
    const { counters } = this.#loan!
    counted[Symbol.dispose]()
    file.end() // which looks at the counters
    this.#loan = undefined
    if (this.#isLarge) this.link.sendsPages(false)
    this.link.wasLent(counters[RECEIVED]!, counters[SENT]!)
    const served = counters[READS]! + counters[WRITES]! + counters[READ_BYTES]! / LARGE
    if (returned instanceof Error) return this.onReturn(returned)
    this.#after = nextAfter(this.#after, served, returned.reason)
    if (returned.reason === 'foreign' && counters[READ_BYTES]! >= MANY_LARGE * LARGEST) this.#copies = 'yes'
    this.onReturn()
    this.link.goOn(returned.rest, returned.unsent)
  }
}

/** Whether a write there is the thread's now. */
async function bring({ terms, prepare }: LentRegions, range: Range) {
  await prepare(range)
  return new WritableRegions(terms).hasAll(range.offset, range.length)
}

function declined(file: LentFile) {
  file.end()
  return false
}

const termsOf = (marks: LentFile['marks']) => marks.map(({ shared, start }) => ({ terms: shared.terms, start }))
