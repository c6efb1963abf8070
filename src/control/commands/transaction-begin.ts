// transaction-begin: what the client's next commands change happens when it says transaction-commit, all at one instant.

import { z } from 'zod'
import { InvalidParameter } from '../../base/errors.ts'
import { ClientTransaction } from '../client-transaction.ts'
import { command } from '../command.ts'
import { uint32 } from '../qapi-type.ts'
import { transactionProperties } from './transaction.ts'

const DEFAULT_TIMEOUT_SECONDS = 60
const MAX_TIMEOUT_SECONDS = 86_400

export const transactionBegin = command({
  name: 'transaction-begin',
  summary:
    'Begins a transaction of this connection: commands that can be its actions are prepared, and take effect together at transaction-commit.',
  arguments: z.strictObject({
    timeout: uint32
      .refine(
        seconds => seconds >= 1 && seconds <= MAX_TIMEOUT_SECONDS,
        `Parameter 'timeout' expects seconds from 1 to ${MAX_TIMEOUT_SECONDS}`,
      )
      .optional()
      .describe(`Seconds after which it is rolled back by itself; ${DEFAULT_TIMEOUT_SECONDS} by default`),
    properties: transactionProperties.optional(),
  }),
  run({ timeout = DEFAULT_TIMEOUT_SECONDS, properties }, context, session) {
    if (session.transaction?.isOpen)
      throw new InvalidParameter('a transaction of this connection is open already; commit it or roll it back first')
    const grouped = properties?.['completion-mode'] === 'grouped'
    session.transaction = new ClientTransaction(context, { grouped, timeoutMs: timeout * 1000 })
  },
})
