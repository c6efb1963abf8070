// Whether a request was meant for us, by its Host header. A page of somebody else can have its own name resolved to our address (DNS
// rebinding), and then the browser takes what we say for that page's; but it says by which name it came.

import { isIP } from 'node:net'

/** Addresses are nobody's names, so whatever address it is: somebody has typed it. */
export function isOurHost(header: string | undefined, names: ReadonlySet<string>): boolean {
  const [, bracketed, plain] = /^(?:\[([\da-f:.]+)\]|([a-z\d._-]+))(?::\d{1,5})?$/i.exec(header ?? '') ?? []
  if (bracketed !== undefined) return isIP(bracketed) === 6
  const name = plain?.toLowerCase().replace(/\.$/, '')
  return name !== undefined && (isIP(name) === 4 || name === 'localhost' || names.has(name))
}
