// Checks an image as qemu-img check does: every reference is counted anew and compared with what the image counts. And repairs it.
//
// Nothing else may be in flight. Repairing leaks lowers counts. Repairing all writes the refcounts anew as a whole, where no old table is,
// and then corrects the flags that depend on them; a crash before the header points to the new ones leaves the image as it was.

import { ReadOnly } from '../../../base/errors.ts'
import { Incompatible } from '../format.ts'
import type { Image } from '../image.ts'
import { readerFor } from '../refcount-entry.ts'
import { checkCopied } from './copied-flags.ts'
import { Findings, type CheckResult } from './findings.ts'
import { rebuildRefcounts } from './rebuild-refcounts.ts'
import type { ReferenceCounts } from './reference-counts.ts'
import { countReferences } from './references.ts'

export type Repair = 'none' | 'leaks' | 'all'

export async function checkImage(image: Image, repair: Repair = 'none'): Promise<CheckResult> {
  if (repair !== 'none' && image.readOnly) throw new ReadOnly('the image is open read-only, and cannot be repaired')
  if (!image.readOnly) await image.settle()
  const findings = new Findings()
  const counts = await countReferences(image, findings)
  const unfixable = findings.corruptions
  const broken = await compare(image, counts, findings)

  let stored = (cluster: number): number | Promise<number> => image.refcounts.get(cluster * image.geometry.clusterSize)
  if (broken) stored = cluster => counts.get(cluster)
  if (repair === 'all' && (findings.corruptions > unfixable || findings.leaks > 0)) {
    await rebuildRefcounts(image, counts)
    stored = cluster => counts.get(cluster)
    findings.leaksFixed = findings.leaks
  } else if (repair !== 'none' && findings.leaks > 0 && !broken && findings.corruptions === unfixable) {
    findings.leaksFixed = await dropLeaks(image, counts)
  }
  await checkCopied(image, stored, findings, repair === 'all')
  if (repair !== 'none') await image.settle()
  if (repair === 'all') findings.corruptionsFixed = findings.corruptions - unfixable
  if (repair === 'all' && unfixable === 0) await clearBits(image)
  return findings
}

async function clearBits(image: Image) {
  const incompatible = image.header.incompatible & ~(Incompatible.dirty | Incompatible.corrupt)
  if (incompatible !== image.header.incompatible) await image.updateHeader({ incompatible })
  image.repaired()
}

/** What the image counts against what was found. Adds the refcount table and its blocks. True when the table itself is broken. */
async function compare(image: Image, counts: ReferenceCounts, findings: Findings): Promise<boolean> {
  const { clusterSize, refcountsPerBlock, refcountBits } = image.geometry
  const read = readerFor(refcountBits)
  const fileClusters = Math.ceil(image.file.size / clusterSize)
  const blocks = new Map<number, number>()
  let broken = false
  countOwn(image, counts)
  const table = image.refcountTable
  for (let index = 0; (index = table.nextUsed(index, table.end)) < table.end; index++) {
    const offset = table.wideOffsetAt(index)
    if (offset % clusterSize !== 0 || table.wordsAt(index)[1] % 512 !== 0) {
      findings.corruption(`refcount block ${index} is not cluster aligned; refcount table entry corrupted`)
      broken = true
    } else if (offset / clusterSize >= fileClusters) {
      findings.corruption(`refcount block ${index} is outside image`)
      broken = true
    } else {
      counts.add(offset / clusterSize, 1)
      blocks.set(index, offset)
    }
  }
  const bytes = Buffer.alloc(clusterSize)
  for (const [index, offset] of blocks) {
    if (counts.get(offset / clusterSize) !== 1)
      findings.corruption(`refcount block ${index} refcount=${counts.get(offset / clusterSize)}`)
    await image.file.read(offset, bytes)
    for (let at = 0; at < refcountsPerBlock; at++)
      compareOne(image, index * refcountsPerBlock + at, read(bytes, at), counts, findings)
  }
  for (const cluster of counts.clusters())
    if (!blocks.has(Math.floor(cluster / refcountsPerBlock))) compareOne(image, cluster, 0, counts, findings)
  return broken
}

function compareOne({ geometry }: Image, cluster: number, stored: number, counts: ReferenceCounts, findings: Findings) {
  const found = counts.get(cluster)
  if (stored > 0 || found > 0) findings.imageEndOffset = Math.max(findings.imageEndOffset, (cluster + 1) * geometry.clusterSize)
  if (stored < found) findings.corruption(`cluster ${cluster} refcount=${stored} reference=${found}`)
  else if (stored > found) findings.leak(`cluster ${cluster} refcount=${stored} reference=${found}`)
}

function countOwn(image: Image, counts: ReferenceCounts) {
  const { clusterSize } = image.geometry
  const { refcountTableOffset, refcountTableClusters } = image.header
  const first = refcountTableOffset / clusterSize
  const last = Math.min(first + refcountTableClusters, Math.ceil(image.file.size / clusterSize))
  for (let cluster = first; cluster < last; cluster++) counts.add(cluster, 1)
}

/** Lowers each count that is too high. Returns how many there were. */
async function dropLeaks(image: Image, counts: ReferenceCounts): Promise<number> {
  const { clusterSize, refcountsPerBlock } = image.geometry
  let fixed = 0
  const table = image.refcountTable
  for (let index = 0; (index = table.nextUsed(index, table.end)) < table.end; index++) {
    for (let cluster = index * refcountsPerBlock; cluster < (index + 1) * refcountsPerBlock; cluster++) {
      const stored = await image.refcounts.get(cluster * clusterSize)
      if (stored <= counts.get(cluster)) continue
      await image.refcounts.set(cluster * clusterSize, counts.get(cluster))
      fixed++
    }
    if (image.isCrowded) await image.writeback.flush()
  }
  return fixed
}
