// How a notice gets to where it is read: a program of the operator's, or a request to a web server.

import { BadSettings, Fault } from '../base/errors.ts'
import { isReference, readSecret } from '../base/secret-reference.ts'
import { runCommand } from '../machines/quiesce/run-command.ts'
import type { NotifySettings } from '../settings/settings.ts'
import type { Courier, Notice } from './notifier.ts'

class NotDelivered extends Fault {}

export const courier: Courier = {
  async deliver(notice, { exec, webhook, timeoutMs }, signal) {
    if (exec)
      await runCommand({
        what: `the command that tells of '${notice.event}'`,
        command: exec,
        env: variables(notice),
        timeoutMs,
        signal,
      })
    const limit = AbortSignal.timeout(timeoutMs)
    if (webhook !== undefined) await post(notice, webhook, signal ? AbortSignal.any([limit, signal]) : limit)
  },
}

/** docs/notifications.md has them. */
const variables = ({ event, schedule, machines, message, time, host, outcome = '', run }: Notice): Record<string, string> => ({
  STILLPOINT_EVENT: event,
  STILLPOINT_SCHEDULE: schedule,
  STILLPOINT_MACHINES: machines.join(' '),
  STILLPOINT_MESSAGE: message,
  STILLPOINT_TIME: time,
  STILLPOINT_HOST: host,
  STILLPOINT_OUTCOME: outcome,
  STILLPOINT_RUN: run === undefined ? '' : String(run),
})

async function post(notice: Notice, where: NonNullable<NotifySettings['webhook']>, signal: AbortSignal) {
  // The address may hold a secret, and is not repeated.
  const url = isReference(where) ? await readSecret(where, 'notify.webhook') : where
  if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol))
    throw new BadSettings('notify.webhook: what it leads to is no http:// or https:// address')
  // Most chat programs show `text`.
  const text = `Stillpoint on ${notice.host}: schedule ${notice.schedule} ${notice.event}: ${notice.message}`
  const { request } = await import('undici') // which is large, and a daemon without webhooks starts without it
  let status
  try {
    const { statusCode, body } = await request(url, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'user-agent': 'stillpoint' },
      body: JSON.stringify({ ...notice, text }),
      signal,
    })
    status = statusCode
    await body.dump({ limit: 65_536 })
  } catch (error) {
    const { code, name } = error as NodeJS.ErrnoException
    throw new NotDelivered(`the webhook of ${new URL(url).host} cannot be reached: ${code ?? name}`, { cause: error })
  }
  if (status >= 300) throw new NotDelivered(`the webhook of ${new URL(url).host} answered ${status}`)
}
