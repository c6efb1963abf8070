// How a disk, a speed and a size are written on the command line of the verbs that change disks.

import { Option } from 'commander'
import { parseSize } from '../../../base/units.ts'
import { Misuse } from '../../failure.ts'

export const DISK = 'MACHINE/DISK'

/** @throws Misuse */
export function namedDisk(text: string): { machine: string; disk: string } {
  const [, machine, disk] = /^([^/]+)\/([^/]+)$/.exec(text) ?? []
  if (machine === undefined || disk === undefined)
    throw new Misuse(`'${text}' is no disk: say ${DISK}, as 'stillpoint disk list' shows them`)
  return { machine, disk }
}

export const speedOption = () => new Option('--speed <bytes>', 'a second, at most, such as 50M (default: no limit)')

/** @throws Misuse */
export function sizeOf(option: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined
  const size = parseSize(text)
  if (size === undefined) throw new Misuse(`${option} must be a size such as 512K or 10M, not '${text}'`)
  return size
}
