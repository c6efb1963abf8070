// The flags in the active L1 and L2 tables that say "this cluster has one user, write it in place". They must agree with the counts.

import { COMPRESSED, COPIED, hex, OFFSET_HIGH, OFFSET_LOW } from '../format.ts'
import type { Image } from '../image.ts'
import { hostOf } from '../mapping.ts'
import type { Findings } from './findings.ts'

/** What counts a cluster, by its index. */
export type CountOf = (cluster: number) => number | Promise<number>

/** Tells where they do not, and with `mend` makes them agree. Everything has been written back before. */
export async function checkCopied(image: Image, countOf: CountOf, findings: Findings, mend: boolean) {
  const { clusterSize } = image.geometry
  const { l1 } = image
  const seen = new Set<number>()
  if (mend) image.l2Cache.clear()
  for (let index = 0; (index = l1.nextUsed(index, l1.end)) < l1.end; index++) {
    const table = l1.offsetAt(index)
    const cluster = table / clusterSize
    if (table === 0 || !Number.isInteger(cluster) || table >= image.file.size) continue
    const count = await countOf(cluster)
    if (l1.isCopied(index) !== (count === 1)) {
      findings.corruption(`OFLAG_COPIED L2 cluster: l1_index=${index} l1_entry=${hex(table)} refcount=${count}`)
      if (mend) l1.set(index, table, count === 1)
    }
    if (seen.has(table)) continue
    seen.add(table)
    await checkTable(image, table, countOf, findings, mend)
  }
}

async function checkTable(image: Image, table: number, countOf: CountOf, findings: Findings, mend: boolean) {
  const { clusterSize, entrySize, externalData } = image.geometry
  const bytes = Buffer.alloc(clusterSize)
  await image.file.read(table, bytes)
  let changed = false
  for (let at = 0; at < clusterSize; at += entrySize) {
    const high = bytes.readUInt32BE(at)
    const low = bytes.readUInt32BE(at + 4)
    const host = hostOf(high, low)
    const compressed = (high & COMPRESSED) !== 0
    if (!compressed && (((high & OFFSET_HIGH) | (low & OFFSET_LOW)) === 0 || host % clusterSize !== 0)) continue
    // A compressed cluster is never written in place; an external one is nobody else's.
    const count = compressed ? 0 : externalData ? 1 : await countOf(host / clusterSize)
    if (high >= COPIED === (count === 1)) continue
    if (!compressed) findings.corruption(`OFLAG_COPIED data cluster: l2_entry=${hex(host)} refcount=${count}`)
    if (mend) changed = setCopied(bytes, at, count === 1)
  }
  if (changed) await image.file.write(table, bytes)
}

function setCopied(bytes: Buffer, at: number, copied: boolean) {
  bytes.writeUInt32BE((bytes.readUInt32BE(at) % COPIED) + (copied ? COPIED : 0), at)
  return true
}
