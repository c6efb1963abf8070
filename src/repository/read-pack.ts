// Reads a part of a pack. That it is not there, or not as long as it should be, is damage: packs do not change.

import { OutOfRange } from '../base/errors.ts'
import type { Range } from '../base/ranges.ts'
import { Damaged } from './faults.ts'
import { NotThere, type GetOptions, type Target } from './target.ts'

/** Exactly the range, or Damaged. Not always in `into`. */
export async function readPack(
  target: Target,
  key: string,
  range: Range,
  options: Pick<GetOptions, 'signal' | 'into' | 'fresh'> = {},
): Promise<Buffer> {
  try {
    const { body } = await target.get(key, { range, ...options })
    if (body.length < range.length) throw new Damaged(`pack ${key} is cut short`)
    return Buffer.from(body.buffer, body.byteOffset, body.length)
  } catch (error) {
    if (error instanceof NotThere) throw new Damaged(`pack ${key} is not there`, { cause: error })
    if (error instanceof OutOfRange) throw new Damaged(`pack ${key} is cut short`, { cause: error })
    throw error
  }
}
