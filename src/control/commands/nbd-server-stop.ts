// QMP's nbd-server-stop.

import { command } from '../command.ts'

export const nbdServerStop = command({
  name: 'nbd-server-stop',
  summary: 'Stops the server that nbd-server-start has started, with its exports and clients.',
  run: async (_, { onDemandServer }) => onDemandServer.stop(),
})
