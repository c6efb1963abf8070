// The same days (simulated-days.ts) in a Debian that systemd has booted, with the package installed: the service is killed, and systemd starts it again.
//
// scripts/package-judge runs it there, as root: node days-under-systemd.js MINUTES [SEED]

import { chownSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { liveDays, type DaysResults, type Site } from './simulated-days.ts'
import { run } from './tools.ts'

const UNIT = 'stillpoint.service'
const FILE = '/etc/stillpoint/stillpoint.yaml'
const PRELOAD = fileURLToPath(new URL('moved-clock.js', import.meta.url))
/** As often as the daemon looks at its clock, and more. */
const CLOCK_MS = 200
const PATIENCE_MS = 120_000

class Service implements Site {
  readonly file = FILE
  readonly state = '/var/lib/stillpoint'
  readonly socket = '/run/stillpoint/nbd.sock'
  readonly clock
  #pid = '0'

  constructor(readonly folder: string) {
    this.clock = join(folder, 'clock')
  }

  configure(text: string) {
    writeFileSync('/etc/stillpoint/conf.d/days.yaml', text)
  }

  async start(ahead: number) {
    this.#set(ahead)
    // One that was killed is being started again already.
    await run('systemctl', ['start', UNIT], { timeoutMs: PATIENCE_MS })
    await this.#until(async () => (await this.#is('ActiveState')) === 'active' && (await this.#is('MainPID')) !== this.#pid)
    this.#pid = await this.#is('MainPID')
  }

  async move(ahead: number) {
    this.#set(ahead)
    await sleep(CLOCK_MS)
  }

  async end(signal: 'SIGKILL' | 'SIGTERM') {
    if (signal === 'SIGTERM') await run('systemctl', ['stop', UNIT], { timeoutMs: PATIENCE_MS })
    else {
      await run('systemctl', ['kill', '--kill-whom=main', '--signal=SIGKILL', UNIT])
      await this.#until(async () => (await this.#is('MainPID')) !== this.#pid)
    }
  }

  async run(...args: string[]) {
    return await run('runuser', ['-u', 'stillpoint', '--', 'stillpoint', ...args], { timeoutMs: PATIENCE_MS })
  }

  #set(ahead: number) {
    writeFileSync(`${this.clock}.new`, String(ahead))
    renameSync(`${this.clock}.new`, this.clock)
  }

  async #is(property: string) {
    return (await run('systemctl', ['show', '--property', property, '--value', UNIT])).trim()
  }

  async #until(condition: () => Promise<boolean>) {
    for (const until = Date.now() + PATIENCE_MS; !(await condition()); await sleep(50))
      if (Date.now() > until) throw new Error(`the service is ${await this.#is('ActiveState')}; journalctl -u ${UNIT} says why`)
  }

  /** Its clock and the secret of the store, by a drop-in. */
  async prepare(environment: Readonly<Record<string, string>>) {
    this.#set(0)
    const all = { ...environment, NODE_OPTIONS: `--import=${PRELOAD}`, TEST_CLOCK_FILE: this.clock }
    mkdirSync(`/etc/systemd/system/${UNIT}.d`, { recursive: true })
    writeFileSync(
      `/etc/systemd/system/${UNIT}.d/days.conf`,
      `[Unit]\nStartLimitIntervalSec=0\n[Service]\n${Object.entries(all)
        .map(([name, value]) => `Environment="${name}=${value}"\n`)
        .join('')}`,
    )
    await run('systemctl', ['daemon-reload'])
    await run('systemctl', ['stop', UNIT], { timeoutMs: PATIENCE_MS })
  }
}

const [minutes = 3, seed = Date.now() % 1e6] = process.argv.slice(2).map(Number)
const [uid, gid] = (await run('getent', ['passwd', 'stillpoint'])).split(':').slice(2, 4).map(Number) as [number, number]
const folder = '/srv/days'
mkdirSync(folder)
chownSync(folder, uid, gid)
const service = new Service(folder)
const secret = { TEST_S3_SECRET: 'hush' }
Object.assign(process.env, secret)
await service.prepare(secret)
await using stack = new AsyncDisposableStack()
const results: DaysResults = await liveDays(stack, { seed, site: service, steps: 1, realMs: minutes * 60_000, leastKills: 6 })
process.stdout.write(`${JSON.stringify({ seed, ...results })}\n`)
// What an operator would ask, too.
for (const name of ['near', 'far']) process.stdout.write(await service.run('repo', 'check', name, '--level', 'deep'))
await service.start(Number(readFileSync(service.clock, 'utf8')))
process.stdout.write(await service.run('schedule', 'list'))
process.exitCode = results.wrong.length > 0 ? 1 : 0
