// Whether a qcow2 image agrees with itself, and its repair: qemu-img check.

import { checkImage, type Repair } from '../../drivers/qcow2/check/check.ts'
import type { CheckResult } from '../../drivers/qcow2/check/findings.ts'
import { Images, type ImageName } from './images.ts'
import { openQcow2 } from './open-qcow2.ts'

/** What was found first, and after a repair what is left. */
export async function checkAndRepair(image: ImageName, repair: Repair): Promise<{ first: CheckResult; now: CheckResult }> {
  await using images = new Images()
  await using opened = await openQcow2(images, image, { readOnly: repair === 'none', forRepair: repair !== 'none' })
  const first = await checkImage(opened.image, repair)
  if (first.leaksFixed + first.corruptionsFixed === 0) return { first, now: first }
  const second = await checkImage(opened.image, 'none')
  return { first, now: { ...second, leaksFixed: first.leaksFixed, corruptionsFixed: first.corruptionsFixed } }
}

const some = (count: number) => (count > 0 ? count : undefined)

/** QMP's ImageCheck. */
export const checkJson = (filename: string, format: string, result: CheckResult) => ({
  'image-end-offset': result.imageEndOffset,
  'total-clusters': some(result.totalClusters),
  'check-errors': result.checkErrors,
  corruptions: some(result.corruptions),
  'corruptions-fixed': some(result.corruptionsFixed),
  leaks: some(result.leaks),
  'leaks-fixed': some(result.leaksFixed),
  'allocated-clusters': some(result.allocatedClusters),
  'fragmented-clusters': some(result.fragmentedClusters),
  'compressed-clusters': some(result.compressedClusters),
  filename,
  format,
})

export function checkText(first: CheckResult, now: CheckResult): string {
  const fixed = first.leaksFixed + first.corruptionsFixed
  const lines = [
    ...first.messages,
    ...(fixed > 0
      ? [
          'The following inconsistencies were found and repaired:\n',
          `    ${first.leaksFixed} leaked clusters`,
          `    ${first.corruptionsFixed} corruptions\n`,
          'Double checking the fixed image now...',
          ...(now === first ? [] : now.messages),
        ]
      : []),
    ...verdict(now),
  ]
  const percent = (part: number) => ((part / now.allocatedClusters) * 100 || 0).toFixed(2)
  if (now.totalClusters > 0 && now.allocatedClusters > 0)
    lines.push(
      `${now.allocatedClusters}/${now.totalClusters} = ${((now.allocatedClusters / now.totalClusters) * 100).toFixed(2)}% allocated, ` +
        `${percent(now.fragmentedClusters)}% fragmented, ${percent(now.compressedClusters)}% compressed clusters`,
    )
  if (now.imageEndOffset > 0) lines.push(`Image end offset: ${now.imageEndOffset}`)
  return lines.map(line => `${line}\n`).join('')
}

function verdict({ corruptions, leaks, checkErrors }: CheckResult): string[] {
  if (corruptions + leaks + checkErrors === 0) return ['No errors were found on the image.']
  return [
    ...(corruptions > 0
      ? [
          `\n${corruptions} errors were found on the image.`,
          'Data may be corrupted, or further writes to the image may corrupt it.',
        ]
      : []),
    ...(leaks > 0
      ? [`\n${leaks} leaked clusters were found on the image.`, 'This means waste of disk space, but no harm to data.']
      : []),
    ...(checkErrors > 0 ? [`\n${checkErrors} internal errors have occurred during the check.`] : []),
  ]
}

/** qemu-img's: errors beat leaks. */
export const checkExitCode = ({ corruptions, leaks, checkErrors }: CheckResult) =>
  checkErrors > 0 ? 1 : corruptions > 0 ? 2 : leaks > 0 ? 3 : 0
