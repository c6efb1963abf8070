// Sizes as qemu-img takes them, and as it shows them.

import { InvalidParameter } from '../../base/errors.ts'

const units = 'BKMGTPE'

/** Bytes: a number, perhaps with a fraction, and b, k, M, G, T, P or E, in powers of 1024. @throws InvalidParameter */
export function sizeOf(text: string, what = 'Image size'): number {
  const [, number = '', unit = ''] = /^(\d+(?:\.\d+)?|0x[0-9a-f]+)([bkmgtpe]?)$/i.exec(text) ?? []
  const bytes = Math.floor(Number(number) * 1024 ** Math.max(0, units.indexOf(unit.toUpperCase())))
  if (number === '' || !Number.isSafeInteger(bytes))
    throw new InvalidParameter(
      `Invalid ${what.toLowerCase()} '${text}': it is a number of bytes, or one with k, M, G, T, P or E (kilobytes, megabytes, ...)`,
    )
  return bytes
}

/** As QEMU's size_to_str: three digits or four, and the unit. */
export function sizeText(bytes: number): string {
  const power = bytes === 0 ? 0 : Math.max(0, Math.floor((Math.log2(bytes) - Math.log2(1000) + 10) / 10))
  const value = bytes / 1024 ** power
  return `${significant(value)} ${power === 0 ? '' : `${units[power]}i`}B`
}

/** printf's %0.3g. */
const significant = (value: number) => {
  const text = Number(value.toPrecision(3))
  return Math.abs(text) >= 1000
    ? text
        .toExponential(2)
        .replace('e+', 'e+0')
        .replace(/\.?0+e/, 'e')
    : String(text)
}

export const alignedSize = (bytes: number) => Math.ceil(bytes / 512) * 512
