// fast-check, begun with the seed of the run where there is one.

import fc from 'fast-check'

const seed = process.env['STILLPOINT_SEED']
if (seed !== undefined) fc.configureGlobal({ seed: Number(seed) })

export default fc
