// How a backup session is told on the control socket.

import { z } from 'zod'
import { uint64 } from './qapi-type.ts'

export const sessionInfo = z.strictObject({
  name: z.string(),
  machine: z.string(),
  mode: z.enum(['pull']),
  status: z.enum(['open', 'broken']),
  /** Why it is broken. */
  reason: z.string().optional(),
  since: z.string().optional(),
  checkpoint: z.string().optional(),
  /** The instant. */
  time: z.string(),
  expires: z.string(),
  socket: z.string().optional(),
  disks: z.array(
    z.strictObject({
      disk: z.string(),
      export: z.string(),
      size: uint64,
      /** The context is `qemu:dirty-bitmap:` and this. */
      bitmap: z.string().optional(),
      /** Bytes that changed since the checkpoint. */
      dirty: uint64.optional(),
    }),
  ),
})
