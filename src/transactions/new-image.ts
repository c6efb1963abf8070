// Makes an image in a file for a node that is about to be opened: the overlay of a snapshot, the target of a copy.
//
// A new file has another name until all of it is there and durable, so what bears the name that was asked for is never a part of an image,
// however the daemon ends. What a daemon that was killed has left under the other name is taken over by the next one.

import { lstat, open as openFile, rm, type FileHandle } from 'node:fs/promises'
import { renameDurably } from '../base/atomic-file.ts'
import { Busy, InvalidParameter } from '../base/errors.ts'
import { systemFault } from '../base/system-fault.ts'
import type { Edge } from '../block/edge.ts'
import type { Graph } from '../block/graph.ts'
import { ALL, Permission } from '../block/permissions.ts'
import { createImage } from '../drivers/qcow2/create.ts'

export interface NewImage {
  readonly filename: string
  readonly format: 'raw' | 'qcow2'
  readonly size: number
  /** Of a qcow2 image. */
  readonly backing?: { readonly file: string; readonly format: string } | undefined
  /** What is there may be overwritten. It stays the same file, with its owner and its labels. */
  readonly replace: boolean
}

/** @throws Fault: the file cannot be made, is there and must not be, or is used by somebody */
export async function makeImage(graph: Graph, image: NewImage): Promise<void> {
  const { filename, replace } = image
  try {
    if (!(await isThere(filename))) return await makeNew(graph, image)
    if (!replace) throw alreadyThere(filename)
    await (await openFile(filename, 'a', 0o644)).close() // a link that leads nowhere is there too
    await withFile(graph, filename, file => fill(file, image))
  } catch (error) {
    throw isSystemError(error) ? systemFault(`Could not create '${filename}'`, error) : error
  }
}

async function makeNew(graph: Graph, image: NewImage) {
  const { filename } = image
  const partial = `${filename}.partial`
  await using made = await openFile(partial, 'a', 0o644)
  await withFile(graph, partial, async file => {
    // Only now it is locked: somebody who made the same image at the same time may have finished it, and then it is not ours.
    if (!(await isSame(made, partial))) throw new Busy(`'${filename}' has just been made by another program; choose another name`)
    try {
      await fill(file, image)
      if (await isThere(filename)) throw alreadyThere(filename)
      await renameDurably(partial, filename)
    } catch (error) {
      await rm(partial, { force: true })
      throw error
    }
  })
}

/** Nobody else changes it meanwhile. */
async function withFile(graph: Graph, filename: string, work: (file: Edge) => Promise<void>) {
  const { write, resize, consistentRead } = Permission
  const node = await graph.open({ driver: 'file', filename })
  try {
    const perm = write | resize | consistentRead
    const edge = graph.attach(node, { description: 'a new image', perm, shared: ALL & ~(write | resize) })
    try {
      await work(edge)
    } finally {
      await graph.detach(edge)
    }
  } finally {
    await graph.delete(node.name)
  }
}

async function fill(file: Edge, { format, size, backing }: NewImage) {
  if (format === 'qcow2') await createImage(file, { size, backingFile: backing?.file, backingFormat: backing?.format })
  else {
    await file.resize(0) // of one that was left behind
    await file.resize(size)
  }
  await file.flush()
}

async function isSame(file: FileHandle, filename: string) {
  const mine = await file.stat()
  const named = (await isThere(filename)) ? await lstat(filename) : undefined
  return named?.ino === mine.ino && named.dev === mine.dev
}

async function isThere(filename: string) {
  try {
    await lstat(filename)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false
    throw error
  }
}

const alreadyThere = (filename: string) =>
  new InvalidParameter(`Could not create '${filename}': it has come to be there meanwhile; choose another name`)

const isSystemError = (error: unknown) => error instanceof Error && 'syscall' in error
