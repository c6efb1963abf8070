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
