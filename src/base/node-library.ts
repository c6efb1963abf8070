// What Node's own program has inside (OpenSSL, zstd) and offers to JavaScript only with copies: called directly, where koffi is there.

import { addresses, type AddressOf } from './address.ts'

export type Call<Arguments extends unknown[], Result> = (...args: Arguments) => Result

/** Declares a function of Node's program, by its prototype in C. */
export type Declare = <Arguments extends unknown[], Result>(prototype: string) => Call<Arguments, Result>

/** What `bind` makes of it for the thread that asks, or `portable` where that does not work or is not wanted. */
export async function nodeLibraryOr<T>(portable: T, bind: (call: Declare, addressOf: AddressOf) => T): Promise<T> {
  if (process.env['STILLPOINT_NATIVE'] === 'off') return portable
  try {
    const { default: koffi } = await import('koffi')
    const program = koffi.load(null)
    return bind(prototype => program.func(prototype), addresses(koffi))
  } catch {
    return portable // no koffi, of which `stillpoint doctor` tells, or a Node that is built otherwise
  }
}
