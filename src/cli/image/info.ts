// What is known of an image: qemu-img info.

import { dirname, isAbsolute, join } from 'node:path'
import type { GraphNode } from '../../block/graph-node.ts'
import type { SnapshotInfo } from '../../block/node-info.ts'
import { filenameOf } from '../../control/node-filename.ts'
import { Images, type ImageName } from './images.ts'
import { sizeText } from './sizes.ts'

export type ImageInfo = Awaited<ReturnType<typeof describe>>

/** The image, and with `chain` those behind it. */
export async function imageInfo(image: ImageName, chain: boolean): Promise<ImageInfo[]> {
  await using images = new Images()
  const top = await images.openReadOnly(image, { backing: chain })
  const all: ImageInfo[] = []
  for (let node: GraphNode | undefined = top; node; node = node.filteredOrBacking) all.push(await describe(node))
  return all
}

/** QMP's ImageInfo. */
async function describe(node: GraphNode) {
  const { allocated, dirty, clusterSize, encrypted, compressed, backing, formatSpecific, snapshots } = await node.info()
  const path = node.filename
  const filename = path !== undefined && node.children.size < 2 ? path : await filenameOf(node)
  return {
    filename,
    format: node.driver.name,
    'virtual-size': node.size,
    'actual-size': allocated,
    'dirty-flag': dirty,
    'cluster-size': clusterSize,
    encrypted: encrypted || undefined,
    compressed: compressed || undefined,
    'backing-filename': backing?.filename,
    'full-backing-filename': backing && fullName(backing.filename, path),
    'backing-filename-format': backing?.format,
    snapshots,
    'format-specific': formatSpecific,
  }
}

const fullName = (name: string, path: string | undefined) =>
  path === undefined || isAbsolute(name) || /^[a-z][a-z0-9+.-]*:/.test(name) ? name : join(dirname(path), name)

export function infoText(info: ImageInfo): string {
  const { 'backing-filename': backing, 'full-backing-filename': full, 'format-specific': specific, snapshots } = info
  const lines = [
    `image: ${info.filename}`,
    `file format: ${info.format}`,
    `virtual size: ${sizeText(info['virtual-size'])} (${info['virtual-size']} bytes)`,
    `disk size: ${info['actual-size'] === undefined ? 'unavailable' : sizeText(info['actual-size'])}`,
    ...(info.encrypted ? ['encrypted: yes'] : []),
    ...(info['cluster-size'] === undefined ? [] : [`cluster_size: ${info['cluster-size']}`]),
    ...(info['dirty-flag'] ? ['cleanly shut down: no'] : []),
    ...(backing === undefined ? [] : [`backing file: ${backing}${full === backing ? '' : ` (actual path: ${full})`}`]),
    ...(info['backing-filename-format'] === undefined ? [] : [`backing file format: ${info['backing-filename-format']}`]),
    ...(snapshots ? snapshotLines(snapshots) : []),
    ...(specific ? ['Format specific information:', ...tree(specific.data, 1)] : []),
  ]
  return lines.map(line => `${line}\n`).join('')
}

const snapshotLine = (id: string, tag: string, size: string, date: string, clock: string, icount: string) =>
  `${id.padEnd(9)} ${tag.padEnd(16)} ${size.padStart(8)} ${date.padStart(19)} ${clock.padStart(12)} ${icount.padStart(10)}`

function snapshotLines(snapshots: readonly SnapshotInfo[]): string[] {
  return [
    'Snapshot list:',
    snapshotLine('ID', 'TAG', 'VM SIZE', 'DATE', 'VM CLOCK', 'ICOUNT'),
    ...snapshots.map(snapshot => {
      const size = sizeText(snapshot['vm-state-size'])
      const { icount = '' } = snapshot
      return snapshotLine(snapshot.id, snapshot.name, size, dateText(snapshot['date-sec']), clockText(snapshot), String(icount))
    }),
  ]
}

const two = (value: number, digits = 2) => String(Math.floor(value)).padStart(digits, '0')

/** In the local time zone. */
function dateText(seconds: number) {
  const at = new Date(seconds * 1000)
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`
  return `${day} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`
}

const clockText = ({ 'vm-clock-sec': seconds, 'vm-clock-nsec': rest }: SnapshotInfo) =>
  `${two(seconds / 3600)}:${two((seconds / 60) % 60)}:${two(seconds % 60)}.${two(rest / 1e6, 3)}`

/** Objects and lists, each level four spaces to the right. */
function tree(value: object, depth: number): string[] {
  const indent = ' '.repeat(depth * 4)
  return Object.entries(value).flatMap(([key, member]: [string, unknown]) => {
    const name = Array.isArray(value) ? `[${key}]` : key.replaceAll('-', ' ')
    if (typeof member === 'object' && member !== null) return [`${indent}${name}:`, ...tree(member, depth + 1)]
    return member === undefined ? [] : [`${indent}${name}: ${typeof member === 'string' ? member : JSON.stringify(member)}`]
  })
}
