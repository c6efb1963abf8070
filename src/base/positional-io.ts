// Reads and writes at an offset of an open file, complete or failed. With many in flight they cost half of what FileHandle's own do.

import fs from 'node:fs'
import { beginThread, endThread } from './threads.ts'

/**
 * Of one write. A larger one makes the kernel take memory for it in pieces so large (2 MiB) that on virtual machines the host has most often
 * taken them away meanwhile: to get them back was seen to take eight times as long as to copy what is written.
 */
const WRITE_MOST = 1 << 20

/** Fills `into`, or as much of it as there is before the end of the file; says how many bytes. */
export async function readUpTo(fd: number, offset: number, into: Buffer) {
  let done = 0
  while (done < into.length) {
    const count = await readSome(fd, into, done, offset + done)
    if (count === 0) break
    done += count
  }
  return done
}

/** Writes all of `data`. */
export async function writeAll(fd: number, offset: number, data: Buffer) {
  for (let done = 0; done < data.length;) done += await writeSome(fd, data, done, offset + done)
}

/** At most all of `into` from `from` on, by one call. `countedAs`: another descriptor of the file, of which it takes a thread. */
export const readSome = (fd: number, into: Buffer, from: number, offset: number, countedAs = fd) =>
  new Promise<number>((resolve, reject) =>
    beginThread(countedAs, () =>
      fs.read(fd, into, from, into.length - from, offset, (error, count) => {
        endThread(countedAs)
        if (error) reject(error)
        else resolve(count)
      }),
    ),
  )

/** The same of `data`; never none. */
export const writeSome = (fd: number, data: Buffer, from: number, offset: number, countedAs = fd) =>
  new Promise<number>((resolve, reject) =>
    beginThread(countedAs, () =>
      fs.write(fd, data, from, Math.min(WRITE_MOST, data.length - from), offset, (error, count) => {
        endThread(countedAs)
        if (error) reject(error)
        else resolve(count)
      }),
    ),
  )
