// The status over HTTP, and the line for Nagios: promtool judges the numbers and the alerts.

import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { connect } from 'node:net'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { Appliance } from '../../src/appliance.ts'
import { createLog } from '../../src/base/log.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { loadSettings } from '../../src/settings/load.ts'
import { Exposition } from '../../src/status/exposition.ts'
import { CliWorker } from '../helpers/cli-worker.ts'
import { scratchFolder } from '../helpers/control.ts'
import { attempt, missing, run } from '../helpers/tools.ts'

/** The command line, for all tests of this file. */
const program = new CliWorker()
t.teardown(() => program[Symbol.asyncDispose]())

const docs = fileURLToPath(new URL('../../../docs/', import.meta.url))
const noPromtool = missing('promtool')

async function start(stack: AsyncDisposableStack) {
  const folder = await scratchFolder(stack)
  const file = join(folder, 's.yaml')
  writeFileSync(join(folder, 'root.raw'), Buffer.alloc(1 << 20, 1))
  writeFileSync(join(folder, 'told'), '')
  writeFileSync(
    file,
    `state: ./state
control: { socket: ./control.sock }
nbd: [ { unix: ./nbd.sock } ]
machines: { db: { disks: { root: { image: ./root.raw, format: raw } } } }
repositories: { local: { plugin: file, path: ./backup } }
schedules:
  good: { machines: [db], repository: local, stale-after: 26h, retries: 0 }
  idle: { machines: [db], repository: local, at: "*-*-* 02:00" }
metrics: { unix: ./metrics.sock }
notify: [ { when: [failed, recovered], exec: 'echo "$STILLPOINT_EVENT $STILLPOINT_SCHEDULE" >> ${join(folder, 'told')}' } ]
`,
  )
  stack.use(await Appliance.start(await loadSettings(file), createLog('silent')))
  const qmp = stack.use(await QmpClient.connect(join(folder, 'control.sock')))
  const get = async (path: string, method = 'GET') => {
    const asked = request({ socketPath: join(folder, 'metrics.sock'), path, method, agent: false }).end()
    const [response] = (await once(asked, 'response')) as [import('node:http').IncomingMessage]
    return { status: response.statusCode, type: response.headers['content-type'], body: await text(response) }
  }
  return {
    folder,
    file,
    get,
    execute: <Result>(command: string, args: object = {}) => qmp.execute(command, args) as Promise<Result>,
    monitor: (...args: string[]) => program.run('--socket', join(folder, 'control.sock'), 'monitor', ...args),
  }
}

t.test('what is measured is told as Prometheus wants it, and the line for Nagios says whether all is well', async t => {
  await using stack = new AsyncDisposableStack()
  const { get, execute, monitor, file, folder } = await start(stack)
  const runSchedule = async () => {
    const { id } = await execute<{ id: number }>('schedule-run', { name: 'good' })
    for (;;) {
      const [{ runs }] = await execute<[{ runs: { id: number }[] }]>('query-schedules', { name: 'good' })
      if (runs.some(run => run.id === id)) return
      await sleep(20)
    }
  }
  const never = await monitor()
  t.same([never.code, never.stdout], [1, 'STILLPOINT WARNING - good has never made a good backup of db\n'])
  const { code } = await program.run('repo', 'init', 'local', '--config', file)
  t.equal(code, 0)
  await runSchedule()
  await execute('checkpoint-create', { machine: 'db', name: 'a' })
  const checked = await program.run('repo', 'check', 'local', '--level', 'scrub', '--config', file)
  t.equal(checked.code, 0, checked.stderr)
  await using guest = await NbdClient.connect(`nbd+unix:///db/root?socket=${join(folder, 'nbd.sock')}`)
  await guest.write(0, Buffer.alloc(4096))
  await guest.zero(0, 4096)
  await guest.read(0, 8192)
  await guest.flush()
  // What repositories hold is read beside the scrapes.
  while (!(await get('/metrics')).body.includes('stillpoint_repository_readable')) await sleep(20)

  const { status, type, body } = await get('/metrics')
  t.same([status, type], [200, 'text/plain; version=0.0.4; charset=utf-8'])
  const value = (sample: string) =>
    Number(
      body
        .split('\n')
        .find(line => line.startsWith(`${sample} `))
        ?.split(' ')
        .at(-1),
    )
  t.equal(value('stillpoint_disk_size_bytes{machine="db",disk="root"}'), 1 << 20)
  t.equal(value('stillpoint_dirty_bytes{machine="db"}'), 65_536)
  t.equal(value('stillpoint_checkpoints{machine="db"}'), 2)
  t.equal(value('stillpoint_push_read_bytes{machine="db",repository="local"}'), 1 << 20)
  t.equal(value('stillpoint_push_disk_read_mode{machine="db",repository="local",disk="root",mode="full"}'), 1)
  t.equal(value('stillpoint_schedule_runs_total{schedule="good",outcome="done"}'), 1)
  t.equal(value('stillpoint_schedule_runs_total{schedule="idle",outcome="failed"}'), 0)
  t.equal(value('stillpoint_schedule_stale_after_seconds{schedule="good"}'), 26 * 3600)
  t.ok(value('stillpoint_schedule_last_good_time_seconds{schedule="good",machine="db"}') > 1.7e9)
  t.ok(value('stillpoint_schedule_next_time_seconds{schedule="idle"}') > Date.now() / 1000)
  t.equal(value('stillpoint_scratch_used_bytes'), 0)
  t.equal(value('stillpoint_export_clients{export="db/root"}'), 1)
  for (const operation of ['read', 'write', 'write_zeroes', 'flush'])
    t.equal(value(`stillpoint_nbd_operations_total{export="db/root",operation="${operation}"}`), 1, operation)
  t.equal(value('stillpoint_nbd_failed_operations_total{export="db/root",operation="write"}'), 0)
  t.equal(value('stillpoint_nbd_bytes_total{export="db/root",operation="read"}'), 8192)
  t.equal(value('stillpoint_guest_write_seconds_count{machine="db",disk="root"}'), 2)
  t.equal(value('stillpoint_guest_write_seconds_bucket{machine="db",disk="root",le="+Inf"}'), 2)
  t.equal(value('stillpoint_repository_readable{repository="local"}'), 1)
  t.equal(value('stillpoint_repository_points{repository="local"}'), 1)
  t.ok(value('stillpoint_repository_bytes{repository="local"}') > 0)
  t.ok(value('stillpoint_repository_check_time_seconds{repository="local",level="scrub"}') > 1.7e9)
  t.equal(value('stillpoint_repository_damaged{repository="local",level="scrub"}'), 0)
  t.equal(value('stillpoint_config_in_force'), 1)
  if (!noPromtool) {
    const judged = await attempt('promtool', ['check', 'metrics'], { input: body })
    t.same([judged.code, judged.stdout + judged.stderr], [0, ''])
  }
  const told = new Set([...body.matchAll(/^# TYPE (\S+) /gm)].map(([, name]) => name!))
  const documented = readFileSync(`${docs}metrics.md`, 'utf8')
  t.same(
    [...told].filter(name => !documented.includes(`\`${name}\``)),
    [],
    'each has its line in docs/metrics.md',
  )

  const well = await monitor('--schedule', 'good', '--warning', '1h')
  t.equal(well.code, 0)
  t.match(well.stdout, /^STILLPOINT OK - 1 backup is as they should be \| 'good\/db'=\d+s\n$/)
})

t.test('what cannot be had is said, and nothing can be changed', async t => {
  await using stack = new AsyncDisposableStack()
  const { get, folder, monitor, file, execute } = await start(stack)
  t.match(await get('/health'), { status: 200, body: 'ok\n' })
  t.match(await get('/nothing'), { status: 404, body: /There is no "\/nothing"; there are \/metrics, \/health/ })
  t.match(await get('/metrics', 'POST'), { status: 405 })
  t.match(await get('/metrics?x=y', 'HEAD'), { status: 200, body: '' })
  const socket = connect(join(folder, 'metrics.sock'))
  socket.end('nonsense\r\n\r\n')
  t.match(await text(socket), /^HTTP\/1\.1 400/)

  const failed = await program.run('--socket', join(folder, 'control.sock'), 'schedule', 'run', 'good')
  t.equal(failed.code, 1)
  const critical = await monitor('--schedule', 'good')
  t.equal(critical.code, 2)
  t.match(critical.stdout, /^STILLPOINT CRITICAL - good has failed: db: .*never made a good backup of db\n$/)
  while (readFileSync(join(folder, 'told'), 'utf8') === '') await sleep(20)
  t.equal(readFileSync(join(folder, 'told'), 'utf8'), 'failed good\n')
  writeFileSync(file, 'colour: red')
  await t.rejects(execute('config-reload'))
  t.match(await get('/health'), { status: 200, body: /^ok, and the configuration is not in force as it is written: / })
  t.match((await monitor()).stdout, /the configuration is not in force: .*unknown key/)
  const nobody = await program.run('--socket', join(folder, 'none.sock'), 'monitor')
  t.equal(nobody.code, 2)
  t.match(nobody.stdout, /^STILLPOINT CRITICAL - .*none\.sock/)
})

t.test('labels with anything in them are told', { skip: noPromtool }, async t => {
  const told = new Exposition()
  told.gauge('a_thing', 'Help with \\ and\na line.', [[{ label: 'a "b" \\ c\nd ü' }, 1.5]])
  told.counter('things_total', 'Counted.', 3)
  told.gauge('none', 'Not told.', [])
  t.equal(
    told.text,
    '# HELP a_thing Help with \\\\ and\\na line.\n# TYPE a_thing gauge\na_thing{label="a \\"b\\" \\\\ c\\nd ü"} 1.5\n# HELP things_total Counted.\n# TYPE things_total counter\nthings_total 3\n',
  )
  const { code, stdout, stderr } = await attempt('promtool', ['check', 'metrics'], { input: told.text })
  t.same([code, stdout + stderr], [0, ''])
})

t.test('the alerts are good, and do what they say', { skip: noPromtool }, async t => {
  t.match(await run('promtool', ['check', 'rules', `${docs}prometheus/stillpoint.rules.yml`]), /SUCCESS: 12 rules found/)
  t.match(await run('promtool', ['test', 'rules', `${docs}prometheus/stillpoint.rules.test.yml`]), /SUCCESS/)
})

t.test('alerts and dashboard ask only for what is measured', async t => {
  const documented = readFileSync(`${docs}metrics.md`, 'utf8')
  for (const name of ['stillpoint.rules.yml', 'grafana-dashboard.json']) {
    const asked = new Set(
      readFileSync(`${docs}prometheus/${name}`, 'utf8')
        .match(/\b(stillpoint|process)_[a-z_]+\b/g)
        ?.map(metric => metric.replace(/_bucket$/, '')),
    )
    t.ok(asked.size > 5)
    t.same(
      [...asked].filter(metric => !documented.includes(`\`${metric}\``)),
      [],
      name,
    )
  }
})
