// Sockets that whoever started the program has opened: those of systemd's socket activation (sd_listen_fds(3)), and a client on standard
// input and output.

import { fstatSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { InvalidParameter } from '../base/errors.ts'

/** The first descriptor that is handed over; the others follow. */
const FIRST_FD = 3
const MOST = 64

/**
 * The sockets to listen at; none where they are not for this process. The environment is cleared of them, so that no program that we start
 * takes them for its own. @throws InvalidParameter
 */
export function activatedSockets(environment: NodeJS.ProcessEnv = process.env, pid = process.pid): number[] {
  const { LISTEN_PID: forWhom, LISTEN_FDS: count } = environment
  if (forWhom === undefined || count === undefined || Number(forWhom) !== pid) return []
  for (const name of ['LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES']) delete environment[name]
  if (!/^\d+$/.test(count) || Number(count) > MOST)
    throw new InvalidParameter(`LISTEN_FDS is '${count}', and should be how many sockets are handed over, at most ${MOST}`)
  return Array.from({ length: Number(count) }, (_, index) => FIRST_FD + index)
}

/** The client on standard input and output: a socket, as inetd and `nbdsh -c` hand it over, or two pipes, as ssh does. */
export async function standardSocket(): Promise<net.Socket> {
  const [input, output] = [fstatSync(0), fstatSync(1)]
  if (input.isSocket() && output.isSocket() && input.ino === output.ino) return new net.Socket({ fd: 0, allowHalfOpen: true })
  return await socketOverPipes()
}

/** What serves a client wants a socket, so there is one between it and the pipes. */
async function socketOverPipes(): Promise<net.Socket> {
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-nbd-'))
  try {
    const path = join(folder, 'socket')
    const accepted = Promise.withResolvers<net.Socket>()
    const server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true }, accepted.resolve)
    server.once('error', accepted.reject)
    await new Promise<void>(resolve => server.listen(path, resolve))
    const ours = net.connect({ path, allowHalfOpen: true })
    ours.once('error', accepted.reject)
    const socket = await accepted.promise
    server.close()
    // An end on one side is one on the other; what fails ends both.
    process.stdin.pipe(ours)
    ours.pipe(process.stdout)
    for (const end of [process.stdin, process.stdout]) end.once('error', () => ours.destroy())
    // Whoever started us may wait for our end before it closes its own, and an open input would keep us alive. What we have said is
    // written by then: Node writes to pipes at once.
    ours.once('end', () => {
      process.stdin.destroy()
      ours.destroy()
    })
    return socket
  } finally {
    await rm(folder, { recursive: true })
  }
}
