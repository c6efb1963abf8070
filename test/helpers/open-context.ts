// What a node gets when it is opened, for tests that open nodes without a graph.

import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { NodeEvent, OpenContext } from '../../src/block/driver.ts'
import { FileNode } from '../../src/drivers/file.ts'
import { native } from '../../src/base/native.ts'

/** A context of which a test says only what matters to it; `events` holds what the node reported. */
export function openContext(said: Partial<OpenContext> = {}) {
  const events: NodeEvent[] = []
  const context: OpenContext = {
    nodeName: 'node',
    readOnly: false,
    unmap: true,
    cache: { direct: false, noFlush: false },
    children: {},
    filenames: {},
    below: child => {
      throw new Error(`nothing is known of '${child}' in this test`)
    },
    find: () => undefined,
    object: id => {
      throw new Error(`no object '${id}' in this test`)
    },
    lookUp: () => undefined,
    bitmap: (node, name) => {
      throw new Error(`no bitmap '${name}' of '${node}' in this test`)
    },
    report: event => events.push(event),
    ...said,
  }
  return { ...context, events }
}

/** A file in a folder of its own that goes when the stack is disposed. */
export async function scratchFile(content: Buffer, stack: AsyncDisposableStack) {
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-test-'))
  stack.defer(() => rm(folder, { recursive: true }))
  const filename = join(folder, 'image')
  await writeFile(filename, content)
  return filename
}

/** A node over such a file, closed with the stack. */
export async function fileNode(content: Buffer, stack: AsyncDisposableStack) {
  return stack.use(await FileNode.open(await scratchFile(content, stack), openContext(), native))
}
