// The settings of a daemon that is told by its command line what to do, as qemu-storage-daemon is, and has no configuration.

import { join } from 'node:path'
import { tmpdir } from 'node:os'
import { schema } from './schema.ts'
import type { Settings } from './settings.ts'

/** No machines, no sockets, no state; what the configuration leaves out has the same defaults here. */
export function settingsWithoutFile(): Settings {
  const { scratch, sessions, limits } = schema.parse({})
  return {
    control: {},
    nbd: [],
    machines: {},
    repositories: {},
    scratch: { path: join(tmpdir(), `stillpoint-${process.pid}`), limit: scratch.limit, timeoutMs: scratch.timeout },
    sessions: { expireMs: sessions.expire },
    schedules: {},
    notify: [],
    limits,
  }
}
