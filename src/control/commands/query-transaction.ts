// query-transaction: what the client's transaction has come to.

import { z } from 'zod'
import { command } from '../command.ts'
import { openTransaction } from '../open-transaction-of.ts'

const step = z.strictObject({
  type: z.string().describe('The command'),
  status: z.enum(['prepared', 'failed']),
  error: z.string().optional(),
})

export const queryTransaction = command({
  name: 'query-transaction',
  summary:
    "The actions of this connection's transaction, the last one's where it is over: which are prepared, and why others are not.",
  returns: z.strictObject({
    status: z
      .enum(['open', 'failed', 'committed', 'rolled-back'])
      .describe('failed: an action could not be prepared, and it can only be rolled back'),
    reason: z.string().optional().describe('Why it was rolled back without being asked to'),
    actions: z.array(step),
  }),
  run(_, _context, session) {
    const { status, reason, steps } = openTransaction(session)
    return { status, ...(reason !== undefined && { reason }), actions: [...steps] }
  },
})
