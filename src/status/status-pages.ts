// The pages of the status server.

import { metricsText, type MetricsContext } from './metrics.ts'
import type { Page } from './status-server.ts'

const PLAIN = 'text/plain; charset=utf-8'

export const statusPages = (context: MetricsContext): Readonly<Record<string, () => Page>> => ({
  '/metrics': () => ({ type: 'text/plain; version=0.0.4; charset=utf-8', text: () => metricsText(context) }),
  // Whoever gets an answer knows that the daemon turns.
  '/health': () => ({ type: PLAIN, text: () => healthText(context) }),
})

function healthText({ configuration: { problem } }: MetricsContext) {
  return problem === undefined ? 'ok\n' : `ok, and the configuration is not in force as it is written: ${problem}\n`
}
