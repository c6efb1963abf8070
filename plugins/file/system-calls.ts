// The steps that change a file target on disk, as an object, so that tests can end a put at each of them.

import { type FileHandle, link, mkdir, open, rename, unlink } from 'node:fs/promises'
import { writeAll } from '../../src/base/positional-io.ts'
import { writeDirect } from './write-direct.ts'

export interface SystemCalls {
  readonly mkdir: (path: string) => Promise<void>
  /** Creates a file that was not there; the caller closes it. */
  readonly create: (path: string) => Promise<FileHandle>
  readonly write: (file: FileHandle, body: Uint8Array, offset?: number) => Promise<void>
  /** As much of it, from the beginning, as can be written around the page cache: how many bytes. */
  readonly writeDirect: (path: string, body: Uint8Array) => Promise<number>
  readonly sync: (file: FileHandle) => Promise<void>
  readonly link: (from: string, to: string) => Promise<void>
  readonly rename: (from: string, to: string) => Promise<void>
  readonly unlink: (path: string) => Promise<void>
  /** Makes what was created, renamed and removed in the folder durable. */
  readonly syncFolder: (path: string) => Promise<void>
}

export const systemCalls: SystemCalls = {
  mkdir,
  create: path => open(path, 'wx', 0o640),
  write: (file, body, offset = 0) => writeAll(file.fd, offset, Buffer.from(body.buffer, body.byteOffset, body.length)),
  writeDirect: (path, body) => writeDirect(path, Buffer.from(body.buffer, body.byteOffset, body.length)),
  sync: file => file.datasync(),
  link,
  rename,
  unlink,
  async syncFolder(path) {
    await using folder = await open(path, 'r')
    await folder.sync()
  },
}
