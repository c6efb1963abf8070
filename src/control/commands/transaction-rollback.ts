// transaction-rollback: nothing of what was prepared since transaction-begin happens.

import { command } from '../command.ts'
import { openTransaction } from '../open-transaction-of.ts'

export const transactionRollback = command({
  name: 'transaction-rollback',
  summary: 'Gives back all that was prepared since transaction-begin; the transaction is over.',
  run: (_, _context, session) => openTransaction(session).rollBack(),
})
