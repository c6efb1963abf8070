// Whether this machine and an S3 store agree on what time it is: signatures of another time are refused.

import type { RepositorySettings } from '../../settings/settings.ts'
import type { Finding } from './finding.ts'

const TIMEOUT_MS = 10_000
/** S3 refuses what is 15 minutes off. */
const REFUSED_MS = 15 * 60_000
const SUSPICIOUS_MS = 60_000

/** Nothing where they agree, or that cannot be told. */
export async function clockSkew({ target }: RepositorySettings): Promise<Finding[]> {
  const { endpoint } = target as { readonly endpoint?: unknown }
  if (target.plugin !== 's3' || typeof endpoint !== 'string' || !URL.canParse(endpoint)) return []
  const { request } = await import('undici') // which is large, and most have no S3
  let date: string | string[] | undefined
  try {
    const { headers, body } = await request(endpoint, { method: 'GET', signal: AbortSignal.timeout(TIMEOUT_MS) })
    await body.dump({ limit: 65_536 })
    date = headers['date']
  } catch (error) {
    if (error instanceof Error) return [] // whether it answers is asked by whoever opens it
    throw error
  }
  const ahead = Date.now() - Date.parse(String(date))
  if (!(Math.abs(ahead) > SUSPICIOUS_MS)) return []
  const isRefused = Math.abs(ahead) > REFUSED_MS
  return [
    {
      health: isRefused ? 'bad' : 'warning',
      found: `this machine's clock is ${Math.round(Math.abs(ahead) / 1000)} s ${ahead > 0 ? 'ahead of' : 'behind'} that of ${new URL(endpoint).host}`,
      costs: isRefused ? 'the store refuses every request' : 'when they are 15 minutes apart the store refuses every request',
      mend: 'timedatectl set-ntp true',
    },
  ]
}
