// The seed of all that tests leave to chance. scripts/run-tests.mjs draws one for a run, says it, and hands it to every file; STILLPOINT_SEED=N
// takes that one, as .ci/run does: what a landing depends on is the change and not luck.

import { randomInt } from 'node:crypto'

export const seed = Number(process.env['STILLPOINT_SEED'] ?? randomInt(2 ** 30))
