// Notifications: what is told, to whom, and how often; over restarts too.

import { once } from 'node:events'
import { chmodSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer, type IncomingMessage } from 'node:http'
import { createServer as createTcpServer, type AddressInfo, type Socket } from 'node:net'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { NoSpace } from '../../src/base/errors.ts'
import { createLog } from '../../src/base/log.ts'
import type { Run } from '../../src/scheduler/schedule-state.ts'
import type { NotifySettings, ScheduleSettings } from '../../src/settings/settings.ts'
import { courier } from '../../src/status/courier.ts'
import { Notifier, noticesSchema, type Notice, type NotifierContext } from '../../src/status/notifier.ts'

const HOUR = 3_600_000
const START = Date.parse('2026-11-20T12:00:00Z')

const schedule = (more: Partial<ScheduleSettings> = {}): ScheduleSettings => ({
  name: 'nightly',
  machines: ['db', 'web'],
  mode: 'push',
  at: ['02:00'],
  jitterMs: 0,
  catchUp: true,
  retries: 0,
  retryAfterMs: 1000,
  staleAfterMs: 26 * HOUR,
  ...more,
})

const everything: NotifySettings = { when: ['failed', 'warning', 'stale', 'recovered'], timeoutMs: 10_000 }

/** A daemon that forgets all but what it has written. */
function world(settings: readonly NotifySettings[] = [everything], more: Partial<NotifierContext> = {}) {
  const arrived: string[] = []
  const notices: Notice[] = []
  let disk: string | undefined
  const self = {
    now: START,
    good: {} as Record<string, string>,
    schedules: [schedule()],
    arrived,
    notices,
    id: 0,
    notifier: undefined as Notifier | undefined,
    async start() {
      self.notifier = await Notifier.start({
        courier: {
          deliver: async (notice, to) => {
            notices.push(notice)
            arrived.push(`${notice.event}${to.schedules ? ` to ${to.schedules.join()}` : ''}: ${notice.message}`)
          },
        },
        store: {
          read: async () => (disk === undefined ? undefined : noticesSchema.parse(JSON.parse(disk))),
          write: async state => void (disk = JSON.stringify(state)),
        },
        log: createLog('silent'),
        host: 'here',
        now: () => self.now,
        settings: () => settings,
        schedules: () => self.schedules.map(settings => ({ settings, good: self.good })),
        ...more,
      })
    },
    async ended(outcome: NonNullable<Run['outcome']>, reason?: string) {
      const begun = new Date(self.now).toISOString()
      if (outcome === 'done' || outcome === 'warning') self.good = { db: begun, web: begun }
      self.notifier!.ended(self.schedules[0]!, {
        id: ++self.id,
        why: 'due',
        begun,
        machines: [],
        outcome,
        ...(reason && { reason }),
      })
      await self.notifier!.check()
    },
    async pass(ms: number) {
      self.now += ms
      await self.notifier!.check()
    },
    async restart() {
      await self.notifier![Symbol.asyncDispose]()
      await self.start()
    },
  }
  return self
}

t.test('what fails is told each time, and once that it is well again', async t => {
  const daemon = world()
  await daemon.start()
  await daemon.ended('done')
  await daemon.ended('failed', 'db: on fire')
  await daemon.restart()
  await daemon.ended('partly', 'web: on fire')
  await daemon.ended('done')
  await daemon.ended('done')
  await daemon.ended('warning', 'db: something was left to the next one')
  t.same(daemon.arrived, [
    'failed: db: on fire',
    'failed: web: on fire',
    'recovered: there is a good backup again',
    'warning: db: something was left to the next one',
  ])
  t.match(daemon.notices[0], {
    event: 'failed',
    schedule: 'nightly',
    machines: ['db', 'web'],
    host: 'here',
    outcome: 'failed',
    run: 2,
  })
  await daemon.notifier![Symbol.asyncDispose]()
})

t.test('what has grown stale is told once, over restarts too, and its end as well', async t => {
  const daemon = world()
  await daemon.start()
  await daemon.ended('done')
  await daemon.pass(26 * HOUR)
  t.same(daemon.arrived, [])
  await daemon.pass(HOUR)
  await daemon.pass(HOUR)
  await daemon.restart()
  await daemon.pass(HOUR)
  t.same(daemon.arrived, [
    'stale: db: the newest good backup is of 2026-11-20T12:00:00.000Z, 27 hours ago; web: the newest good backup is of 2026-11-20T12:00:00.000Z, 27 hours ago',
  ])
  await daemon.ended('done')
  t.equal(daemon.arrived.at(-1), 'recovered: there is a good backup again')
  daemon.schedules = [schedule({ name: 'new' })]
  daemon.good = {}
  await daemon.pass(HOUR)
  await daemon.pass(27 * HOUR)
  t.match(daemon.arrived.at(-1), /^stale: db: there has never been a good backup; web: /)
  t.equal(daemon.arrived.length, 3)
  await daemon.notifier![Symbol.asyncDispose]()
})

t.test('a state folder that is full or gone keeps nothing from being told', async t => {
  let isFull = false
  const lines: string[] = []
  const write = async () => {
    if (isFull) throw new NoSpace('cannot write /state/notices.json: No space left on device')
  }
  const daemon = world([everything], {
    store: { read: async () => undefined, write },
    log: createLog('warn', { write: line => lines.push(line) }),
  })
  await daemon.start()
  isFull = true
  await daemon.ended('failed', 'db: cannot write /state/db.json: No space left on device')
  await daemon.pass(27 * HOUR)
  await daemon.pass(HOUR)
  await daemon.ended('done')
  t.match(daemon.arrived, [/^failed: db: cannot write/, /^stale: db: there has never been/, /^recovered: /])
  t.equal(daemon.arrived.length, 3, 'and each once')
  t.match(lines.join(''), /it cannot be written down what was told of schedules.*No space left/)
})

t.test('everybody hears of what they want to hear, and of no other schedule', async t => {
  const daemon = world([
    { ...everything, when: ['recovered'] },
    { ...everything, schedules: ['other'] },
    { ...everything, schedules: ['nightly'] },
  ])
  await daemon.start()
  await daemon.ended('failed', 'x')
  await daemon.ended('done')
  t.same(daemon.arrived, [
    'failed to nightly: x',
    'recovered: there is a good backup again',
    'recovered to nightly: there is a good backup again',
  ])
  await daemon.notifier![Symbol.asyncDispose]()
})

const notice: Notice = {
  event: 'failed',
  schedule: 'nightly',
  machines: ['db', 'web'],
  message: 'db: "on" fire\nand burning',
  time: '2026-11-20T12:00:00.000Z',
  host: 'here',
  outcome: 'partly',
  run: 7,
}

t.test('a program is told by its environment, and nothing else of ours is in it', async t => {
  const folder = t.testdir()
  const [script, out] = [join(folder, 'tell'), join(folder, 'out')]
  writeFileSync(
    script,
    `#!/bin/sh\nenv -u PWD -u SHLVL -u _ | grep -c SECRET > ${out}.secrets\nprintf '%s|' "$1" "$STILLPOINT_EVENT" "$STILLPOINT_MACHINES" "$STILLPOINT_MESSAGE" "$STILLPOINT_RUN" > ${out}\n`,
  )
  chmodSync(script, 0o755)
  process.env['MY_SECRET'] = 'hush'
  await courier.deliver(notice, { ...everything, exec: [script, 'page'] })
  delete process.env['MY_SECRET']
  t.equal(readFileSync(out, 'utf8'), 'page|failed|db web|db: "on" fire\nand burning|7|')
  t.equal(readFileSync(`${out}.secrets`, 'utf8'), '0\n')
  writeFileSync(script, '#!/bin/sh\necho no line; exit 3\n')
  await t.rejects(
    courier.deliver(notice, { ...everything, exec: [script] }),
    /the command that tells of 'failed' failed with 3: no line/,
  )
})

t.test('a web server is told by a request, and its address, which may be a secret, by nobody', async t => {
  const requests: { request: IncomingMessage; body: string }[] = []
  let status = 200
  const server = createServer((request, response) => {
    let body = ''
    request.setEncoding('utf8').on('data', (data: string) => (body += data))
    request.on('end', () => {
      requests.push({ request, body })
      response.writeHead(status).end('ok')
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/hush?a=b`
  await courier.deliver(notice, { ...everything, webhook: url })
  t.match(requests[0]!.request, { method: 'POST', url: '/hush?a=b', headers: { 'content-type': 'application/json' } })
  t.match(JSON.parse(requests[0]!.body), {
    ...notice,
    text: 'Stillpoint on here: schedule nightly failed: db: "on" fire\nand burning',
  })
  const file = join(t.testdir({ url: `${url}\n` }), 'url')
  await courier.deliver(notice, { ...everything, webhook: `file:${file}` })
  t.equal(requests.length, 2)
  status = 500
  await t.rejects(courier.deliver(notice, { ...everything, webhook: url }), /^(?!.*hush).*answered 500$/)
  writeFileSync(file, 'gopher://x')
  await t.rejects(courier.deliver(notice, { ...everything, webhook: `file:${file}` }), { name: 'BadSettings' })
  server.close()
  server.closeAllConnections()
  await t.rejects(courier.deliver(notice, { ...everything, webhook: url }), /^(?!.*hush).*cannot be reached: \w+$/)
})

/** A web server that answers what it is told to, one after the other, and then the last. */
async function answering(t: Test, statuses: number[]) {
  const bodies: string[] = []
  const server = createServer((request, response) => {
    let body = ''
    request.setEncoding('utf8').on('data', (data: string) => (body += data))
    request.on('end', () => {
      bodies.push(body)
      response.writeHead(statuses.length > 1 ? statuses.shift()! : statuses[0]!).end()
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  return { bodies, settings: { ...everything, webhook: `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook` } }
}

t.test('a web server that refuses is told again, and what it never took is counted', async t => {
  const mended = await answering(t, [503, 500, 204])
  const broken = await answering(t, [500])
  const daemon = world([mended.settings, broken.settings], { courier, retriesMs: [1, 1] })
  await daemon.start()
  await daemon.ended('failed', 'db: on fire')
  while (mended.bodies.length < 3 || daemon.notifier!.failed === 0) await turn()
  await daemon.notifier![Symbol.asyncDispose]()
  t.equal(mended.bodies.length, 3)
  t.same(new Set(mended.bodies).size, 1, 'with the same each time')
  t.match(JSON.parse(mended.bodies[2]!), { event: 'failed', message: 'db: on fire' })
  t.equal(daemon.notifier!.failed, 1)
})

t.test('a daemon that stops does not wait for whoever takes no notice, however long that may take by itself', async t => {
  const sockets = new Set<Socket>()
  const silent = createTcpServer(socket => sockets.add(socket.on('error', () => socket.destroy()).resume())).listen(
    0,
    '127.0.0.1',
  )
  t.teardown(() => {
    silent.close()
    for (const socket of sockets) socket.destroy()
  })
  await once(silent, 'listening')
  const begun = join(t.testdir(), 'begun')
  const patient = { ...everything, timeoutMs: 86_400_000 }
  const webhook = `http://127.0.0.1:${(silent.address() as AddressInfo).port}/hook`
  const exec = ['/bin/sh', '-c', `: > ${begun}; sleep 86400`] as const
  const settings = [
    { ...patient, webhook },
    { ...patient, exec },
  ]
  const daemon = world(settings, { courier, momentMs: 1 })
  await daemon.start()
  const connected = once(silent, 'connection')
  await daemon.ended('failed', 'db: on fire')
  await connected
  while (!existsSync(begun)) await turn()
  await daemon.notifier![Symbol.asyncDispose]()
  t.equal(daemon.notifier!.failed, 2)
})

t.test('a daemon that stops tries what has not arrived once more, and does not wait for the next time', async t => {
  const { bodies, settings } = await answering(t, [503, 204])
  const lines: string[] = []
  const log = createLog('warn', { write: line => lines.push(line) })
  const daemon = world([settings], { courier, log, retriesMs: [86_400_000] })
  await daemon.start()
  await daemon.ended('failed', 'db: on fire')
  while (!lines.some(line => line.includes('is tried again'))) await turn()
  await daemon.notifier![Symbol.asyncDispose]()
  t.equal(bodies.length, 2)
  t.equal(daemon.notifier!.failed, 0)
})
