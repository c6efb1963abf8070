// Whether the guest is frozen for an instant: an argument of the commands that make one.

import { z } from 'zod'

export const quiesce = z
  .boolean()
  .optional()
  .describe('True: freeze the guest for the instant, or do nothing; false: do not. By default as the configuration says')
