// QMP's query-block-exports.

import { z } from 'zod'
import { command } from '../command.ts'
import { describeExport, exportInfo } from '../export-info.ts'

export const queryBlockExports = command({
  name: 'query-block-exports',
  summary: 'All exports, newest first: those of the control socket, of machines and of backup sessions.',
  returns: z.array(exportInfo),
  run: (_, { nodeExports }) => Array.from(nodeExports, describeExport),
})
