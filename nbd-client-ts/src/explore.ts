// Looking around on a server without entering an export.

import { openNegotiation } from './connect.ts'
import type { ListedExport, Negotiation } from './negotiation.ts'
import { type NbdTarget, type ServerOptions, goalOf } from './options.ts'
import type { ExportInfo, ReplyMode } from './session.ts'

export class NbdNegotiation implements AsyncDisposable {
  private constructor(private readonly negotiation: Negotiation) {}

  /** Connects, and stops where an export would be entered. */
  static async open(target: NbdTarget, options: ServerOptions = {}): Promise<NbdNegotiation> {
    return new NbdNegotiation(await openNegotiation(await goalOf(target, options), options.signal))
  }

  /** What was agreed on: with `simple` replies the server has no metadata contexts. */
  get replies(): ReplyMode {
    return this.negotiation.mode
  }

  /** The exports that the server is willing to show. */
  list(): Promise<ListedExport[]> {
    return this.negotiation.list()
  }

  /** What the server says of an export. */
  info(exportName: string): Promise<ExportInfo> {
    return this.negotiation.info(exportName)
  }

  /** The names of an export's metadata contexts: all, or those that queries such as "base:" or "qemu:dirty-bitmap:" find. */
  listContexts(exportName: string, queries: readonly string[] = []): Promise<string[]> {
    return this.negotiation.listContexts(exportName, queries)
  }

  /** Leaves, as the protocol wants it. */
  close(): Promise<void> {
    return this.negotiation.abort()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}
