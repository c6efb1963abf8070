// The page's own files: plain HTML, style and modules in src/web/page, which a browser takes as they are. They are read once, when the daemon
// starts, and nothing else is ever read on a request.

import { hash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { extname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { systemFault } from '../base/system-fault.ts'

export interface PageFile {
  readonly type: string
  readonly body: Buffer
  readonly tag: string
}

const types: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.mjs': 'text/javascript; charset=utf-8',
  '.svg': 'image/svg+xml',
}

/** Beside the sources also where the program is compiled: nothing is done to them. */
const FOLDER = fileURLToPath(new URL('../../../src/web/page/', import.meta.url))

export const tagOf = (body: string | Buffer) => `"${hash('sha256', body, 'base64url').slice(0, 22)}"`

/** By the path at which they are found. */
export async function readPageFiles(): Promise<ReadonlyMap<string, PageFile>> {
  const files = new Map<string, PageFile>()
  try {
    for (const name of await readdir(FOLDER)) {
      const type = types[extname(name)]
      if (type === undefined) continue
      const body = await readFile(join(FOLDER, name))
      files.set(name === 'index.html' ? '/' : `/${name}`, { type, body, tag: tagOf(body) })
    }
  } catch (error) {
    throw systemFault(
      `the files of the status page are not all there, so install Stillpoint anew or leave "web" out: ${FOLDER}`,
      error,
    )
  }
  return files
}
