// The demo's backup software: other people's programs where they are installed, else our own client.

import { copyFile, open, stat } from 'node:fs/promises'
import { NbdClient } from 'nbd-client-ts'
import { Allocation, BASE_ALLOCATION as ALLOCATION, DIRTY, QEMU_DIRTY_BITMAP } from 'nbd-client-ts/protocol'
import { find, run } from './tools.ts'

export interface Pulled {
  /** The program that did it. */
  readonly by: string
  /** Bytes that were read over NBD. */
  readonly read: number
  /** Bytes that the backup takes on disk. */
  readonly saved: number
}

const PIECE = 2 ** 20
const savedIn = async (file: string) => (await stat(file)).blocks * 512

/** A whole frozen view into a raw file, holes as holes. */
export async function pullFull(uri: string, into: string, prefer: 'nbdcopy' | 'qemu-img'): Promise<Pulled> {
  const by = find(prefer) ? prefer : 'nbd-client-ts'
  const read = await dataBytes(uri)
  if (by === 'nbdcopy') await run('nbdcopy', [uri, into])
  else if (by === 'qemu-img') await run('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', uri, into])
  else {
    await using client = await NbdClient.connect(uri, { contexts: [ALLOCATION] })
    await using file = await open(into, 'w')
    await file.truncate(client.size)
    for await (const { offset, length, status } of client.extents())
      if (!(status[ALLOCATION]! & Allocation.ZERO)) await copyRange(client, file, offset, length)
  }
  return { by, read, saved: await savedIn(into) }
}

/**
 * What changed since the checkpoint, and put together with the full backup into `restored`. With QEMU's tools the increment is a qcow2
 * overlay of the full backup: of the frozen view only the dirty ranges are read into it.
 */
export async function pullIncrement(
  uri: string,
  bitmap: string,
  full: string,
  increment: string,
  restored: string,
): Promise<Pulled> {
  const ranges = await dirtyRanges(uri, `${QEMU_DIRTY_BITMAP}${bitmap}`)
  const read = ranges.reduce((sum, { length }) => sum + length, 0)
  if (find('qemu-img') && find('qemu-io')) {
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', uri, increment])
    for (let first = 0; first < ranges.length; first += 500) {
      const commands = ranges.slice(first, first + 500).flatMap(({ offset, length }) => ['-c', `read ${offset} ${length}`])
      await run('qemu-io', ['-C', '-f', 'qcow2', ...commands, increment])
    }
    await run('qemu-img', ['rebase', '-u', '-F', 'raw', '-b', full, increment])
    await run('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', increment, restored])
    return { by: 'qemu-io', read, saved: await savedIn(increment) }
  }
  await using client = await NbdClient.connect(uri)
  {
    await using file = await open(increment, 'w')
    for (const { offset, length } of ranges) await copyRange(client, file, offset, length)
  }
  await copyFile(full, restored)
  await using file = await open(restored, 'r+')
  for (const { offset, length } of ranges) await copyRange(client, file, offset, length)
  return { by: 'nbd-client-ts', read, saved: await savedIn(increment) }
}

async function copyRange(client: NbdClient, file: Awaited<ReturnType<typeof open>>, offset: number, length: number) {
  for (let at = offset; at < offset + length; at += PIECE) {
    const piece = await client.read(at, Math.min(PIECE, offset + length - at))
    await file.write(piece, 0, piece.length, at)
  }
}

async function dirtyRanges(uri: string, context: string) {
  await using client = await NbdClient.connect(uri, { contexts: [context] })
  const ranges: { offset: number; length: number }[] = []
  for await (const { offset, length, status } of client.extents()) {
    if (status[context]! & DIRTY) ranges.push({ offset, length })
  }
  return ranges
}

async function dataBytes(uri: string) {
  await using client = await NbdClient.connect(uri, { contexts: [ALLOCATION] })
  let bytes = 0
  for await (const { length, status } of client.extents()) if (!(status[ALLOCATION]! & Allocation.ZERO)) bytes += length
  return bytes
}
