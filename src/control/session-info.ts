// How a backup session is told on the control socket.

import { z } from 'zod'
import { uint64 } from './qapi-type.ts'

export const sessionInfo = z.strictObject({
  name: z.string(),
  machine: z.string(),
  mode: z.enum(['pull', 'push']),
  /** Of a pull session `open` or `broken`, of a push the others. */
  status: z.enum(['open', 'broken', 'running', 'finished', 'failed']),
  /** Why it is broken or has failed. */
  reason: z.string().optional(),
  /** Of a push that has failed: what the command line exits with, where there is a code for it. */
  'exit-code': z.int().optional(),
  /** Where it is pushed to, and, once it is there, the restore point. */
  repository: z.string().optional(),
  point: z.string().optional(),
  since: z.string().optional(),
  checkpoint: z.string().optional(),
  /** The instant. */
  time: z.string(),
  /** Whether the guest's file systems were quiet at it. */
  consistency: z.enum(['crash', 'quiesced']),
  expires: z.string().optional(),
  /** Of a push: bytes of the disks that are dealt with, of how many; read; that the repository did not have, plain and stored; a second; and how long it is going to take, while it runs. */
  progress: z
    .strictObject({
      done: uint64,
      total: uint64,
      read: uint64,
      new: uint64,
      stored: uint64,
      rate: uint64,
      'seconds-left': uint64.optional(),
    })
    .optional(),
  socket: z.string().optional(),
  disks: z.array(
    z.strictObject({
      disk: z.string(),
      export: z.string().optional(),
      size: uint64,
      /** The context is `qemu:dirty-bitmap:` and this. */
      bitmap: z.string().optional(),
      /** Bytes that changed since the checkpoint. */
      dirty: uint64.optional(),
      /** Of a push that is there: how the disk was read and why, what had changed, and what that took. */
      read: z.enum(['full', 'bitmap', 'compare']).optional(),
      why: z.string().optional(),
      changed: uint64.optional(),
      stored: uint64.optional(),
    }),
  ),
})
