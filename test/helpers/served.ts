// An NBD server over nodes that a test has made, on a unix socket in a folder of its own.

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createLog } from '../../src/base/log.ts'
import type { BlockIo } from '../../src/block/driver.ts'
import { baseAllocation, type Context } from '../../src/nbd-server/context.ts'
import type { Export } from '../../src/nbd-server/export.ts'
import { Exports } from '../../src/nbd-server/exports.ts'
import { NbdServer, type NbdServerOptions } from '../../src/nbd-server/server.ts'

/** An export named `disk` of the node, of which a test says only what matters to it. */
export const exportOf = (io: BlockIo, said: Partial<Export> = {}): Export => ({
  id: said.name ?? 'disk',
  name: 'disk',
  writable: true,
  io,
  contexts: [baseAllocation(io)] satisfies Context[],
  ...said,
})

/** What went wrong in the server goes to `lines`; a test that expects nothing there says so. */
export async function serve(
  exported: readonly Export[],
  stack: AsyncDisposableStack,
  options: Partial<NbdServerOptions> & { defaultName?: string } = {},
) {
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-nbd-'))
  stack.defer(() => rm(folder, { recursive: true }))
  const socket = join(folder, 'nbd.sock')
  const exports = new Exports({ defaultName: options.defaultName ?? exported[0]?.name ?? '' })
  for (const one of exported) exports.add(one)
  const lines: string[] = []
  const log = createLog('warn', { write: line => lines.push(line) })
  const server = stack.use(await NbdServer.listen({ unix: socket }, { exports, log, ...options }))
  return {
    server,
    exports,
    socket,
    folder,
    lines,
    uri: (name = '') => `nbd+unix:///${encodeURIComponent(name)}?socket=${socket}`,
  }
}

/** Waits until no connection is left, and sees that none has left anything behind. */
export async function quiet({ server, exports }: { server: NbdServer; exports: Exports }) {
  for (let waited = 0; server.connections > 0; waited++) {
    if (waited > 1000) throw new Error(`${server.connections} connections are left`)
    await new Promise(resolve => setTimeout(resolve, 2))
  }
  if (server.memoryTaken > 0) throw new Error(`${server.memoryTaken} bytes of memory were not given back`)
  for (const { id } of exports) if (exports.usersOf(id) > 0) throw new Error(`'${id}' is still in use`)
}
