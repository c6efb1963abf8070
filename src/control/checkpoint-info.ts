// How a checkpoint is told on the control socket.

import { z } from 'zod'
import type { Checkpoint, Checkpoints } from '../machines/checkpoints.ts'
import type { Machine } from '../machines/machine.ts'
import { uint64 } from './qapi-type.ts'

export const checkpointInfo = z.strictObject({
  machine: z.string(),
  name: z.string(),
  parent: z.string().optional(),
  time: z.string(),
  description: z.string().optional(),
  consistency: z.enum(['crash', 'quiesced']),
  disks: z.array(z.string()),
  /** It is the one whose bitmaps record. */
  current: z.boolean(),
  /** A backup since it can be had. */
  usable: z.boolean(),
  /** Why not. */
  problem: z.string().optional(),
  /** Bytes that changed since, over all disks. */
  changed: uint64.optional(),
})

export function describeCheckpoint(machine: Machine, checkpoints: Checkpoints, checkpoint: Checkpoint, { size = false } = {}) {
  const { name, parent, time, description, consistency, disks } = checkpoint
  const problem = checkpoints.problemOf(name)
  return {
    machine: machine.name,
    name,
    parent,
    time,
    description,
    consistency,
    disks: [...disks],
    current: checkpoints.current === checkpoint,
    usable: problem === undefined,
    problem,
    changed: size && problem === undefined ? checkpoints.changedBytes(name) : undefined,
  }
}
