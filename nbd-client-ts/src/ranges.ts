// Arithmetic on ranges, and work on the pieces of one.

import { NbdUsageError } from './errors.ts'

export interface Range {
  readonly offset: number
  readonly length: number
}

export const alignDown = (value: number, unit: number): number => value - (value % unit)
export const alignUp = (value: number, unit: number): number => alignDown(value + unit - 1, unit)

/** Cuts a range into pieces of at most `most` bytes, from its own start. */
export function* pieces({ offset, length }: Range, most: number): Generator<Range> {
  for (let done = 0; done < length; done += most) yield { offset: offset + done, length: Math.min(most, length - done) }
}

/**
 * Works on several at a time. After a failure nothing new is begun; it ends when all that was begun has ended, so that nobody is
 * still at work when it has thrown.
 */
export async function forEach<T>(
  items: Iterable<T> | AsyncIterable<T>,
  atOnce: number,
  work: (item: T) => Promise<unknown>,
): Promise<void> {
  const iterator = Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]()
  let failed: { error: unknown } | undefined
  async function worker() {
    try {
      while (!failed) {
        const next = await iterator.next()
        if (next.done) return
        await work(next.value)
      }
    } catch (error) {
      failed ??= { error }
    }
  }
  await Promise.all(Array.from({ length: atOnce }, worker))
  if (!failed) return
  await iterator.return?.()
  throw failed.error
}

/** The value, where it is such a number; throws NbdUsageError where not. */
export function whole(name: string, value: number, least: number): number {
  if (!Number.isSafeInteger(value) || value < least)
    throw new NbdUsageError(`${name} is ${value}, and must be a whole number from ${least} on`)
  return value
}
