// transaction-commit: all that was prepared since transaction-begin happens now, or nothing of it.

import { command } from '../command.ts'
import { openTransaction } from '../open-transaction-of.ts'

export const transactionCommit = command({
  name: 'transaction-commit',
  summary: 'Everything prepared since transaction-begin takes effect at one instant, or nothing does; the transaction is over.',
  run: (_, _context, session) => openTransaction(session).commit(),
})
