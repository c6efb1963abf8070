// query-daemon: which daemon this is, where it listens and what it uses.

import { z } from 'zod'
import { command } from '../command.ts'
import { uint16, uint64 } from '../qapi-type.ts'

const daemonInfo = z.strictObject({
  version: z.string(),
  pid: uint64,
  started: z.string(),
  config: z.string().optional(),
  'config-problem': z.string().optional(),
  state: z.string().optional(),
  control: z.array(z.string()),
  nbd: z.array(
    z.discriminatedUnion('type', [
      z.strictObject({ type: z.literal('unix'), path: z.string() }),
      z.strictObject({
        type: z.literal('inet'),
        host: z.string(),
        port: uint16,
        tls: z.boolean().optional().describe('Clients must use TLS'),
      }),
    ]),
  ),
  scratch: z.strictObject({ path: z.string(), used: uint64, limit: uint64 }),
})

export type DaemonInfo = z.infer<typeof daemonInfo>

export const queryDaemon = command({
  name: 'query-daemon',
  summary: 'The version of the daemon, its files and sockets, and how much scratch space its sessions use.',
  returns: daemonInfo,
  run: (_, context) => context.describeDaemon(),
})
