// The disks' images: whether they are there, can hold bitmaps, and have room for them.

import { open, statfs } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { Fault, NotSupported, strerror } from '../../base/errors.ts'
import { formatSize } from '../../base/units.ts'
import { bitmapBytes } from '../../drivers/qcow2/bitmap-directory.ts'
import { CorruptImage } from '../../drivers/qcow2/corrupt-image.ts'
import { Incompatible } from '../../drivers/qcow2/format.ts'
import { decodeHeader, headerClusterSize } from '../../drivers/qcow2/header.ts'
import type { DiskSettings } from '../../settings/settings.ts'
import { dropIn, ofDaemon } from './commands.ts'
import { quoted, type Examination, type Finding, type Patient } from './finding.ts'
import { existing } from './existing-folder.ts'

const QCOW2 = 'QFI\xfb'
const GRANULARITY_BITS = 16
/** A few checkpoints, and what is around them. */
const AT_ONCE = 4
const AROUND = 1 << 20

export const images: Examination = {
  name: 'images',
  about: 'images of disks',
  async examine(patient) {
    const findings: Finding[] = []
    for (const [machine, { disks }] of Object.entries(patient.settings?.machines ?? {}))
      for (const [disk, settings] of Object.entries(disks)) {
        const finding = await look(patient, [machine, disk], settings)
        findings.push({ of: `${machine}/${disk}`, ...finding })
      }
    return findings
  },
}

async function look(patient: Patient, name: readonly [string, string], settings: DiskSettings): Promise<Finding> {
  const { image, format } = settings
  try {
    await using file = await open(image, 'r')
    const start = Buffer.alloc(112)
    const { bytesRead } = await file.read(start, 0, start.length, 0)
    const isQcow2 = format !== 'raw' && start.toString('latin1', 0, 4) === QCOW2
    const { size: end } = await file.stat()
    if (!isQcow2) return await roomFor(patient, name, { place: settings.bitmaps, size: end, own: true })
    const first = Buffer.alloc(headerClusterSize(start.subarray(0, bytesRead)))
    const read = await file.read(first, 0, first.length, 0)
    const { version, size, incompatible } = decodeHeader(first.subarray(0, read.bytesRead))
    if ((incompatible & Incompatible.corrupt) !== 0n) throw new CorruptImage('it is marked as corrupt')
    if (version === 2)
      return {
        health: 'warning',
        found: `${image} is of the old kind (compat=0.10), which cannot keep bitmaps`,
        costs: 'what changed is forgotten whenever the daemon ends, and the next backup reads everything',
        mend: `qemu-img amend -f qcow2 -o compat=1.1 ${quoted(image)} (while nothing has it open: stop the daemon first)`,
      }
    return await roomFor(patient, name, { place: image, size, own: false })
  } catch (error) {
    return unusable(patient, name, settings, error)
  }
}

function unusable(patient: Patient, name: readonly [string, string], { image }: DiskSettings, error: unknown): Finding {
  if (error instanceof NotSupported)
    return {
      health: 'bad',
      found: `${image}: ${error.message}`,
      costs: 'the disk cannot be opened',
      mend: `qemu-img convert -O qcow2 ${quoted(image)} ${quoted(`${image}.new`)} (by a QEMU that knows it; then name the new image in ${patient.file})`,
    }
  if (error instanceof Fault)
    return {
      health: 'bad',
      found: `${image}: ${error.message}`,
      costs: 'the disk cannot be opened, or not be trusted',
      mend: `stillpoint image check -r all ${quoted(image)}`,
    }
  if ((error as NodeJS.ErrnoException).code === undefined) throw error
  return {
    health: 'bad',
    found: `${image}: ${strerror(error)}`,
    costs: 'the disk is not served, and a backup of its machine fails',
    mend: `put the image there, or say in ${patient.file} where it is (machines.${name.join('.disks.')}.image); then: ${ofDaemon(patient, 'config reload')}`,
  }
}

interface Place {
  readonly place: string
  readonly size: number
  /** A file that holds nothing else, and may as well be elsewhere. */
  readonly own: boolean
}

async function roomFor(
  patient: Patient,
  [machine, disk]: readonly [string, string],
  { place, size, own }: Place,
): Promise<Finding> {
  const folder = await existing(dirname(place))
  const { bavail, bsize } = await statfs(folder)
  const [free, need] = [bavail * bsize, AT_ONCE * bitmapBytes(size, GRANULARITY_BITS) + AROUND]
  if (free >= need) return { health: 'good', found: `${formatSize(size)}, and room for bitmaps in ${folder}` }
  const elsewhere = join(patient.settings!.state!, 'bitmaps', `${machine}.${disk}.qcow2`)
  const text = `machines: { ${machine}: { disks: { ${disk}: { bitmaps: ${JSON.stringify(elsewhere)} } } } }`
  return {
    health: 'warning',
    found: `${formatSize(free)} are left in ${folder}, and bitmaps of ${formatSize(size)} may need ${formatSize(need)}`,
    costs: 'where there is no room for a bitmap the next backup reads everything',
    mend:
      own && place !== elsewhere
        ? dropIn(patient, `bitmaps-${machine}-${disk}`, text)
        : `make room there: df -h ${quoted(folder)}`,
  }
}
