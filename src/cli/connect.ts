// A connection to the daemon, for commands. What it needs is loaded only when somebody asks: help and the version have no use for it.

import type { Daemon } from './daemon-client.ts'

/** @throws NoDaemon, NotQmp, ConnectionLost */
export async function connectDaemon(socket: string): Promise<Daemon> {
  const { Daemon } = await import('./daemon-client.ts')
  return Daemon.connect(socket)
}
