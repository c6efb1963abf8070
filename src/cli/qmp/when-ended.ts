// Tells when a daemon goes away while nothing is asked of it.

import type { QmpClient } from '../../control/qmp-client.ts'

/** Also when it is this side that hangs up. */
export function whenEnded(client: QmpClient, then: () => void): void {
  const events = client.events()
  const wait = async () => {
    while (!(await events.next()).done);
  }
  wait().then(then, then)
}
