// Who is examined: the configuration, and the daemon that may run with it.

import { access } from 'node:fs/promises'
import { BadSettings, Fault } from '../../base/errors.ts'
import { connectDaemon } from '../connect.ts'
import { DEFAULT_FILE } from '../commands/daemon.ts'
import type { Daemon } from '../daemon-client.ts'
import type { Patient } from './finding.ts'

/** Without a name the usual place is looked at, and nothing there is nothing wrong. */
export async function findPatient(stack: AsyncDisposableStack, named: string | undefined): Promise<Patient> {
  const file = named ?? DEFAULT_FILE
  const nothing = { file, settings: undefined, problem: undefined, daemon: undefined }
  if (named === undefined && !(await isThere(file))) return nothing
  const { loadSettings } = await import('../../settings/load.ts')
  try {
    const settings = await loadSettings(file)
    const { socket } = settings.control
    const daemon = socket === undefined ? undefined : await connectIfThere(socket)
    if (daemon) stack.use(daemon)
    return { ...nothing, settings, daemon }
  } catch (error) {
    if (error instanceof BadSettings) return { ...nothing, problem: error.message }
    throw error
  }
}

async function connectIfThere(socket: string): Promise<Daemon | undefined> {
  try {
    return await connectDaemon(socket)
  } catch (error) {
    if (error instanceof Fault) return undefined // sockets.ts says where that is for want of permission
    throw error
  }
}

async function isThere(path: string) {
  try {
    await access(path)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false
    return true // it is for whoever reads it to say why it cannot be read
  }
}
