// A connection to the daemon, for commands. What it needs is loaded only when somebody asks: help and the version have no use for it.

import type { Daemon } from './daemon-client.ts'

interface ConnectOptions {
  /** How long a daemon that is not there yet may take to come. Default: no time at all. */
  readonly waitMs?: number
}

/** @throws NoDaemon, NotQmp, ConnectionLost */
export async function connectDaemon(socket: string, { waitMs = 0 }: ConnectOptions = {}): Promise<Daemon> {
  const { Daemon } = await import('./daemon-client.ts')
  return Daemon.connect(socket, waitMs)
}
