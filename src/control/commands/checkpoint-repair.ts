// checkpoint-repair: what is wrong with the bitmaps of a machine's checkpoints, and the mending of it.

import { z } from 'zod'
import { command } from '../command.ts'

const finding = z.strictObject({
  disk: z.string(),
  bitmap: z.string(),
  problem: z.enum(['orphan', 'inconsistent', 'missing']),
  checkpoint: z.string().optional(),
  /** The image that it is in. */
  node: z.string().optional(),
  reason: z.string().optional(),
})

export const checkpointRepair = command({
  name: 'checkpoint-repair',
  summary: 'Lists bitmaps that no checkpoint knows and checkpoints that lack one, and, with `mend`, puts that right.',
  arguments: z.strictObject({
    machine: z.string(),
    mend: z
      .boolean()
      .default(false)
      .describe(
        'What orphans hold goes to the current checkpoint; a disk of which a bitmap is lost is read in full from that checkpoint and older ones',
      ),
  }),
  returns: z.strictObject({ mended: z.boolean(), findings: z.array(finding) }),
  run: async ({ machine, mend }, { machines }) => ({
    mended: mend,
    findings: await machines.get(machine).checkpoints.repair({ mend }),
  }),
})
