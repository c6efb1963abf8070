// QMP's quit: answered first, then done.

import { command } from '../command.ts'

export const quit = command({
  name: 'quit',
  summary: 'Ends the daemon: exports are closed, jobs cancelled, images closed with their bitmaps stored.',
  run: async (_, context) => context.quit(),
})
