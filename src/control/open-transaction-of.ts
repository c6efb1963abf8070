// The transaction that a client has begun.

import { InvalidParameter } from '../base/errors.ts'
import type { Session } from './context.ts'

/** It may be over by itself; then what is done with it says so. @throws InvalidParameter where there is none */
export function openTransaction({ transaction }: Session) {
  if (!transaction) throw new InvalidParameter('this connection has no transaction; transaction-begin begins one')
  return transaction
}
