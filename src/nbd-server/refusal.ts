// Which requests are refused before anything is done, and why. What was not offered is refused here and nowhere else.

import {
  blockStatusPayload,
  Command,
  CommandFlag as Flag,
  nameOf,
  PORTABLE_PAYLOAD,
  TransmissionFlag as Offer,
  type NbdErrorName,
} from 'nbd-client-ts/protocol'
import { MAX_PAYLOAD, type ReplyMode } from './offer.ts'
import type { Request } from './request.ts'

export interface Refusal {
  readonly error: NbdErrorName
  readonly message: string
}

interface Rule {
  readonly flags: number
  /** The transmission flag that offers it. */
  readonly offer: number
  readonly writes: boolean
  /** Said when the range reaches past the end. */
  readonly beyond: 'EINVAL' | 'ENOSPC'
  readonly takesPayload: boolean
}

const rule = (
  flags: number,
  { offer = 0, writes = false, beyond = 'EINVAL', takesPayload = false }: Partial<Rule> = {},
): Rule => ({
  flags: flags | Flag.FUA, // where it is offered it may stand beside any command
  offer,
  writes,
  beyond,
  takesPayload,
})

const rules: Readonly<Record<number, Rule>> = {
  [Command.READ]: rule(Flag.DF),
  [Command.WRITE]: rule(0, { writes: true, beyond: 'ENOSPC', takesPayload: true }),
  [Command.FLUSH]: rule(0, { offer: Offer.SEND_FLUSH }),
  [Command.TRIM]: rule(0, { offer: Offer.SEND_TRIM, writes: true }),
  [Command.CACHE]: rule(0, { offer: Offer.SEND_CACHE }),
  [Command.WRITE_ZEROES]: rule(Flag.NO_HOLE | Flag.FAST_ZERO, { offer: Offer.SEND_WRITE_ZEROES, writes: true, beyond: 'ENOSPC' }),
  [Command.BLOCK_STATUS]: rule(Flag.REQ_ONE, { takesPayload: true }),
}

/** The transmission flag that a command's flag needs. */
const offers: readonly [flag: number, offer: number][] = [
  [Flag.FUA, Offer.SEND_FUA],
  [Flag.DF, Offer.SEND_DF],
  [Flag.FAST_ZERO, Offer.SEND_FAST_ZERO],
]

export interface RefusalTerms {
  /** The transmission flags that were sent. */
  readonly flags: number
  readonly size: number
  readonly mode: ReplyMode
  /** How many metadata contexts the client has chosen. */
  readonly contexts: number
}

const invalid = (message: string): Refusal => ({ error: 'EINVAL', message })

export function refusalOf(request: Request, terms: RefusalTerms): Refusal | undefined {
  const { type, offset, length } = request
  const name = nameOf(Command, type)
  const rule = rules[type]
  if (!rule) return invalid(`command ${name} is not known here`)
  const withPayload = (request.flags & Flag.PAYLOAD_LEN) !== 0
  const flags = request.flags & ~Flag.PAYLOAD_LEN
  if (withPayload && (terms.mode !== 'extended' || !rule.takesPayload)) return invalid(`${name} takes no payload`)
  if ((flags & ~rule.flags) !== 0) return invalid(`${name} does not take the flags 0x${(flags & ~rule.flags).toString(16)}`)
  if (rule.writes && (terms.flags & Offer.READ_ONLY) !== 0) return { error: 'EPERM', message: 'the export is read-only' }
  if ((terms.flags & rule.offer) !== rule.offer) return invalid(`${name} was not offered`)
  for (const [flag, offer] of offers)
    if ((flags & flag) !== 0 && (terms.flags & offer) === 0) return invalid(`${nameOf(Flag, flag)} was not offered`)
  switch (type) {
    case Command.FLUSH:
      return offset === 0 && length === 0 ? undefined : invalid('a FLUSH has no range')
    case Command.BLOCK_STATUS:
      if (terms.contexts === 0) return invalid('no metadata context was chosen')
      if (withPayload) return filterRefusal(length, terms)
      if (length === 0) return invalid('a BLOCK_STATUS of no bytes')
      break
    case Command.READ:
      if (length > MAX_PAYLOAD) return invalid(`READ of more than ${MAX_PAYLOAD} bytes`)
      if (length > PORTABLE_PAYLOAD && (flags & Flag.DF) !== 0)
        return { error: 'EOVERFLOW', message: `READ of more than ${PORTABLE_PAYLOAD} bytes in one chunk` }
      break
    case Command.WRITE:
      if (terms.mode === 'extended' && !withPayload) return invalid('WRITE without PAYLOAD_LEN')
  }
  if (offset + length > terms.size)
    return { error: rule.beyond, message: `${name} reaches past the end of the export, which is at ${terms.size}` }
  return undefined
}

/** `length` is the payload's; what is in it is looked at when it is here. */
function filterRefusal(length: number, { flags, contexts }: RefusalTerms) {
  if ((flags & Offer.BLOCK_STATUS_PAYLOAD) === 0) return invalid('BLOCK_STATUS_PAYLOAD was not offered')
  const ids = (length - blockStatusPayload.size) / 4
  if (ids < 1 || ids > contexts || !Number.isInteger(ids))
    return invalid(`${length} bytes do not hold the ids of contexts, each once`)
  return undefined
}
