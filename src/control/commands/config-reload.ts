// config-reload: reads the configuration again.

import { z } from 'zod'
import { command } from '../command.ts'

export const configReload = command({
  name: 'config-reload',
  summary:
    'Reads the configuration again: disks, exports and listeners are added and removed, the others go on. One that is not good changes nothing.',
  returns: z.strictObject({
    changes: z.array(z.string()).describe('What was done, for people'),
    problems: z.array(z.string()).describe('What could not be done, and what mends it'),
  }),
  async run(_, { configuration }) {
    const { changes, problems } = await configuration.reload()
    return { changes: [...changes], problems: [...problems] }
  },
})
