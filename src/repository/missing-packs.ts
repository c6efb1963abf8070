// Looks whether the packs that the index names are there, by a listing: before something new relies on them.
//
// A pack that is gone, or has another size, goes into quarantine, as if it had been found by verifying. A pack that no index object
// names may be what is left of a backup that was interrupted, or is at work; or else an object of the index is gone, and with it the word of
// what restore points need. That cannot be told from the listing, so whoever shares a tree then looks at all of it (push/mistrusted.ts).

import { packKey, packOfKey } from './pack.ts'
import { quarantine, type RepositoryIndex } from './repository-index.ts'
import type { Target } from './target.ts'

/** From so many packs on they are listed by the beginnings of their names, several at once. */
const MANY = 5000
const AT_ONCE = 8

/** Whether some were put into quarantine: then the index is to be loaded anew. */
export async function quarantineMissing(target: Target, index: RepositoryIndex, signal?: AbortSignal): Promise<boolean> {
  const unseen = new Map<string, number>()
  for (const { packs } of [index.data, index.meta])
    for (const { kind, name, size, avoid } of packs) if (!avoid) unseen.set(packKey(kind, name), size)
  const known = index.packs()
  const bad: string[] = []
  const look = async (prefix: string) => {
    for await (const { key, size } of target.list(prefix, { signal })) {
      const wanted = unseen.get(key)
      unseen.delete(key)
      if (wanted !== undefined && wanted !== size) bad.push(key)
      if (packOfKey(key) && !known.has(key) && !index.avoid.has(key)) index.isWhole = false
    }
  }
  const prefixes = [...prefixesOf('packs/', index.data.packs.length), ...prefixesOf('meta/', index.meta.packs.length)]
  for (let at = 0; at < prefixes.length; at += AT_ONCE) await Promise.all(prefixes.slice(at, at + AT_ONCE).map(look))
  bad.push(...unseen.keys())
  for (const key of bad) await quarantine(target, key)
  return bad.length > 0
}

function prefixesOf(kind: string, packs: number): string[] {
  if (packs < MANY) return [kind]
  return Array.from({ length: 256 }, (_, byte) => `${kind}${byte.toString(16).padStart(2, '0')}/`)
}
