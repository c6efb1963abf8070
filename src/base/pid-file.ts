// The file in which others find the daemon's process (`--pidfile`), as QEMU writes it: the number and a newline, locked while the daemon runs.

import { rm, writeFile } from 'node:fs/promises'
import { Busy } from './errors.ts'
import { lockFile } from './file-lock.ts'
import { systemFault } from './system-fault.ts'

/** Removed when disposed. @throws Busy while another process has it */
export async function writePidFile(path: string): Promise<AsyncDisposable> {
  await using parts = new AsyncDisposableStack()
  const lock = await lockFile(path)
  if (!lock)
    throw new Busy(`cannot create PID file: another process has ${path}; stop it first, or give this one a file of its own`)
  parts.use(lock)
  parts.defer(() => rm(path, { force: true }))
  try {
    await writeFile(path, `${process.pid}\n`)
  } catch (error) {
    throw systemFault(`cannot create PID file ${path}`, error)
  }
  return parts.move()
}
