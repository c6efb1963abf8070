// A server's unix socket: made with the mode it keeps, in the place of one that a dead daemon left, never of one that answers.

import { lstatSync, unlinkSync, type Stats } from 'node:fs'
import { connect, type Server } from 'node:net'
import { Busy, InvalidParameter, strerror } from './errors.ts'

/** Owner and group may connect: to connect to a unix socket one needs to be allowed to write to it (unix(7)). */
const DEFAULT_MODE = 0o660
/** A daemon that is alive accepts at once; one that hangs must not hang us. */
const PROBE_TIMEOUT_MS = 2000

/**
 * Makes `server` listen at `path`. The socket goes when the server is closed.
 * @throws Busy where another server answers there
 */
export async function listenUnix(server: Server, path: string, { mode = DEFAULT_MODE } = {}): Promise<void> {
  await clear(path)
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  server.once('error', reject)
  // bind() happens within listen(), so the socket has its mode from the first moment.
  const before = process.umask(0o777 & ~mode)
  try {
    server.listen(path, resolve)
  } finally {
    process.umask(before)
  }
  try {
    await promise
  } catch (error) {
    throw new InvalidParameter(
      `Cannot listen at ${path}: ${strerror(error)}; is its folder there, and may this user write to it?`,
      {
        cause: error,
      },
    )
  } finally {
    server.off('error', reject)
  }
}

/** Removes what a dead server left at `path`. */
async function clear(path: string) {
  const found = socketAt(path)
  if (!found) return
  const answer = await probe(path)
  if (answer === undefined)
    throw new Busy(`Another daemon answers at ${path}; stop it first, or give this one a socket of its own`)
  if (answer !== 'ECONNREFUSED' && answer !== 'ENOENT')
    throw new InvalidParameter(`Cannot tell whether a daemon is alive at ${path} (${answer}); remove the socket if none is`)
  // Only the one that was asked: another daemon may have taken the place meanwhile.
  const now = socketAt(path)
  if (now && now.ino === found.ino && now.dev === found.dev) unlinkSync(path)
}

function socketAt(path: string): Stats | undefined {
  const found = lstatSync(path, { throwIfNoEntry: false })
  if (found && !found.isSocket())
    throw new InvalidParameter(`${path} is there and is no socket; remove it, or choose another path`)
  return found
}

/** Undefined where somebody accepts, else the error's code. */
function probe(path: string): Promise<string | undefined> {
  return new Promise(resolve => {
    const socket = connect(path)
    const done = (code?: string) => {
      socket.destroy()
      resolve(code)
    }
    socket.setTimeout(PROBE_TIMEOUT_MS, () => done('ETIMEDOUT'))
    socket.on('connect', () => done())
    socket.on('error', (error: NodeJS.ErrnoException) => done(error.code ?? error.message))
  })
}
