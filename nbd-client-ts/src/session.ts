// What a negotiation ended with: the export as one connection sees it.

import { TransmissionFlag } from './protocol.ts'

/** How replies come. */
export type ReplyMode = 'simple' | 'structured' | 'extended'

export interface BlockSizes {
  /** Offsets and lengths must be multiples of it, but for what ends at the end of the export. */
  readonly minimum: number
  readonly preferred: number
  /** Of one read or write. */
  readonly maximum: number
}

/** What INFO and GO say. */
export interface ExportInfo {
  /** The name it was asked by. */
  readonly name: string
  /** Bytes. */
  readonly size: number
  /** TransmissionFlag */
  readonly flags: number
  /** Undefined where the server does not say. */
  readonly blockSizes: BlockSizes | undefined
  /** The name the server has for it, where it says one. */
  readonly canonicalName: string | undefined
  readonly description: string | undefined
}

export interface Session {
  readonly export: ExportInfo
  readonly mode: ReplyMode
  /** The metadata contexts agreed on, by the ids of this connection. */
  readonly contexts: ReadonlyMap<number, string>
}

export const has = (info: ExportInfo, flag: keyof typeof TransmissionFlag) => (info.flags & TransmissionFlag[flag]) !== 0

/** Why two connections do not see the same export, or undefined. */
export function differenceOf(a: Session, b: Session): string | undefined {
  if (a.export.size !== b.export.size) return `the export's size is ${b.export.size} on it, and was ${a.export.size}`
  if (a.export.flags !== b.export.flags)
    return `the export's flags are 0x${b.export.flags.toString(16)} on it, and were 0x${a.export.flags.toString(16)}`
  if (a.mode !== b.mode) return `it has ${b.mode} replies, and the first has ${a.mode} ones`
  const [before, after] = [a, b].map(
    ({ export: { blockSizes } }) => blockSizes && `${blockSizes.minimum} to ${blockSizes.maximum}`,
  )
  if (before !== after) return `it takes blocks of ${after ?? 'no said size'}, and the first ${before ?? 'did not say'}`
  const [mine, theirs] = [a, b].map(({ contexts }) => [...contexts.values()].sort().join(', '))
  return mine === theirs ? undefined : `it has the contexts '${theirs}', and the first has '${mine}'`
}
