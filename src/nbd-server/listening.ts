// Where a server listens, and how a unix socket comes to be there.

import { chmod, lstat, stat, unlink } from 'node:fs/promises'
import net from 'node:net'
import { dirname } from 'node:path'
import { DEFAULT_PORT } from 'nbd-client-ts/protocol'
import { Busy, Fault, InvalidParameter, isNameUnknown, strerror } from '../base/errors.ts'
import { systemFault } from '../base/system-fault.ts'

export type ListenAddress =
  | {
      /** The path of a unix socket; with a NUL in front an abstract name, which has no file. */
      readonly unix: string
      /** The permissions of the socket's file. Default 0600: whoever may open it may do everything the exports allow. */
      readonly mode?: number
    }
  | {
      readonly host: string
      /** Default 10809; 0 for any that is free. */
      readonly port?: number
    }
  | {
      /** An open socket that listens, from systemd (sd_listen_fds(3)). */
      readonly fd: number
    }

/** What sun_path of a Linux socket address holds, with the NUL at its end. */
const MAX_PATH = 107

/** Says the address as people write it. */
export function addressText(address: ListenAddress): string {
  if ('unix' in address) return address.unix.startsWith('\0') ? `@${address.unix.slice(1)}` : address.unix
  return 'fd' in address ? `file descriptor ${address.fd}` : `${address.host}:${address.port ?? DEFAULT_PORT}`
}

/** Makes the server listen. The file of a unix socket is its owner's alone until its mode is set. */
export async function listen(server: net.Server, address: ListenAddress) {
  if (!('unix' in address)) return await start(server, 'fd' in address ? address : { port: DEFAULT_PORT, ...address }, address)
  const { unix: path, mode = 0o600 } = address
  if (path === '') throw new InvalidParameter("the path of a unix socket is empty; say where it is to be, as '/run/disks.sock'")
  if (Buffer.byteLength(path) > MAX_PATH) throw new InvalidParameter(`UNIX socket path '${path}' is too long`)
  if (path.startsWith('\0')) return await start(server, { path }, address)
  await removeStale(path)
  // Between its creation and the change of its mode nobody else may open it. The mask is the whole process's, but nothing runs in between.
  const before = process.umask(0o177)
  let started: Promise<void>
  try {
    started = start(server, { path }, address)
  } finally {
    process.umask(before)
  }
  await started
  await chmod(path, mode)
}

function start(server: net.Server, where: net.ListenOptions | { fd: number }, address: ListenAddress) {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const failed = (error: NodeJS.ErrnoException) => {
    const fault = systemFault(whatFailed(address, error), error)
    const isTaken = error.code === 'EADDRINUSE' && !('fd' in address)
    reject(isTaken ? new Busy(`${fault.message}: stop what listens there, or choose another`, { cause: error }) : fault)
  }
  server.once('error', failed)
  server.listen(where, () => {
    server.off('error', failed)
    resolve()
  })
  return promise
}

/** In QEMU's words where they say which address it is about. */
function whatFailed(address: ListenAddress, error: unknown) {
  if ('unix' in address) return `Failed to bind socket to ${addressText(address)}`
  const failed = isNameUnknown(error) ? 'address resolution failed for' : 'Could not listen at'
  return `${failed} ${addressText(address)}`
}

/** A socket that nobody answers at is left from a server that was killed. */
async function removeStale(path: string) {
  try {
    await stat(dirname(path)) // to listen in a folder that is not there fails as if it were a matter of permission
    if (!(await lstat(path)).isSocket())
      throw new Busy(`${path} is there already, and is no socket; remove it or choose another path`)
    if (await isLive(path)) throw new Busy(`${path}: another server listens there; stop it or choose another path`)
    await unlink(path)
  } catch (error) {
    if (error instanceof Fault) throw error
    const { code, syscall } = error as NodeJS.ErrnoException
    if (code !== 'ENOENT' || syscall === 'stat') throw systemFault(whatFailed({ unix: path }, error), error)
  }
}

function isLive(path: string) {
  const { promise, resolve, reject } = Promise.withResolvers<boolean>()
  const socket = net.connect(path)
  socket.once('connect', () => resolve(true))
  socket.once('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'ECONNREFUSED') resolve(false)
    else if (error.code === 'EAGAIN')
      resolve(true) // its queue is full
    else reject(new Busy(`${path}: ${strerror(error)}: it is not known whether another server listens there`))
  })
  return promise.finally(() => socket.destroy())
}
