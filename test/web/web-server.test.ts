// The status page's server, asked by raw clients, some of which mean no good; and its document, judged by what NBD says of the same bitmaps.

import { EventEmitter, once } from 'node:events'
import type { ServerResponse } from 'node:http'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from '../helpers/property.ts'
import t from 'tap'
import { createLog } from '../../src/base/log.ts'
import { openPlace } from '../../src/push/open-place.ts'
import { initRepository } from '../../src/repository/repository-file.ts'
import type { StatusDocument } from '../../src/web/document.ts'
import { isOurHost } from '../../src/web/our-host.ts'
import { Rates } from '../../src/web/rates.ts'
import { Subscribers } from '../../src/web/subscribers.ts'
import { startAppliance, type TestAppliance } from '../helpers/appliance.ts'
import { CHEAP } from '../helpers/push-point.ts'
import { generator } from '../helpers/random-bytes.ts'
import { missing, run } from '../helpers/tools.ts'

const MiB = 1 << 20
const GRANULE = 65536

interface Answer {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

/** What comes back for these very bytes, until the server closes. */
async function raw(folder: string, bytes: string): Promise<string> {
  const socket = connect(join(folder, 'web.sock'))
  const parts: Buffer[] = []
  socket.on('data', (data: Buffer) => parts.push(data))
  // A server that has said enough may close while we still talk.
  socket.on('error', () => socket.destroy())
  const closed = new Promise<void>(resolve => socket.once('close', () => resolve()))
  socket.write(bytes)
  await closed
  return Buffer.concat(parts).toString()
}

async function ask(folder: string, path: string, { method = 'GET', host = 'localhost', more = '' } = {}): Promise<Answer> {
  const answer = await raw(folder, `${method} ${path} HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n${more}\r\n`)
  const end = answer.indexOf('\r\n\r\n')
  const [first = '', ...lines] = answer.slice(0, end).split('\r\n')
  const headers = Object.fromEntries(lines.map(line => [line.split(':', 1)[0]!.toLowerCase(), line.slice(line.indexOf(':') + 2)]))
  return { status: Number(first.split(' ')[1]), headers, body: answer.slice(end + 4) }
}

const start = (stack: AsyncDisposableStack, disks: Readonly<Record<string, Buffer>> = { root: Buffer.alloc(MiB) }, more = '') =>
  startAppliance(stack, { disks, more: `web: { unix: ./web.sock, hosts: [backup.example] }\n${more}` })

const documentOf = async ({ folder }: Pick<TestAppliance, 'folder'>) =>
  JSON.parse((await ask(folder, '/status.json')).body) as StatusDocument

t.test(
  'the page and all that it names are served, with a policy that lets nothing else in, and kept as long as they are the same',
  async t => {
    await using stack = new AsyncDisposableStack()
    const { folder } = await start(stack)
    const wanted = ['/']
    const types: Record<string, string> = {
      css: 'text/css',
      mjs: 'text/javascript',
      svg: 'image/svg+xml',
      json: 'application/json',
    }
    for (const path of wanted) {
      const { status, headers, body } = await ask(folder, path)
      t.equal(status, 200, path)
      t.match(headers['content-type'], types[path.split('.')[1] ?? ''] ?? 'text/html')
      const policy = headers['content-security-policy'] ?? ''
      t.match(policy, /^default-src 'none'; script-src 'self'; style-src 'self';/)
      t.notMatch(policy, /unsafe|\*|https?:/)
      t.match(headers, {
        'x-content-type-options': 'nosniff',
        'x-frame-options': 'DENY',
        'cache-control': 'no-cache',
        'referrer-policy': 'no-referrer',
        'cross-origin-resource-policy': 'same-origin',
      })
      t.equal(headers['access-control-allow-origin'], undefined)
      t.equal(Buffer.byteLength(body), Number(headers['content-length']))
      const head = await ask(folder, path, { method: 'HEAD' })
      t.same([head.status, head.body, head.headers['content-type']], [200, '', headers['content-type']])
      const kept = await ask(folder, path, { more: `If-None-Match: "other", W/${head.headers['etag']}\r\n` })
      t.same([kept.status, kept.body], [304, ''])
      t.notMatch(
        body,
        /<script(?![^>]* src="[\w.]+")|<style| on\w+=|style="|javascript:|(src|href)="(https?:)?\/\//i,
        'nothing inline, nothing from elsewhere',
      )
      for (const [, name] of body.matchAll(/(?:src|href|from|fetch\()\s*=?\s*['"]\.?\/?([\w-]+\.(?:mjs|css|svg|json))['"]/g))
        if (!wanted.includes(`/${name}`)) wanted.push(`/${name}`)
    }
    t.ok(
      ['/style.css', '/main.mjs', '/heat.mjs', '/status.json', '/icon.svg'].every(path => wanted.includes(path)),
      wanted.join(' '),
    )
  },
)

t.test('whoever asks otherwise is refused, and nothing else is reached', async t => {
  await using stack = new AsyncDisposableStack()
  const { folder } = await start(stack)
  for (const path of [
    '/../package.json',
    '/%2e%2e/web-server.ts',
    '//',
    '/./main.mjs',
    '/index.html',
    '/main.mjs/',
    '/main.mjs%00',
    '/__proto__',
    '/constructor',
    'http://localhost/main.mjs',
    '*',
  ])
    t.equal((await ask(folder, path)).status, 404, path)
  t.equal((await ask(folder, '/main.mjs?x=/status.json')).status, 200)
  for (const method of ['POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS', 'TRACE', 'PROPFIND']) {
    const { status, headers } = await ask(folder, '/', { method })
    t.same([status, headers['allow']], [405, 'GET, HEAD'], method)
  }
  t.match(await raw(folder, 'CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n'), /^$/)
  for (const more of ['Content-Length: 5\r\n', 'Transfer-Encoding: chunked\r\n'])
    t.equal((await ask(folder, '/', { more })).status, 400, more)
  for (const host of [
    'evil.example',
    'localhost.evil.example',
    'evil.example:80',
    'localhost@evil.example',
    'localhost/',
    '',
    '127.0.0.1.evil.example',
    'backup.example.evil',
  ])
    for (const path of ['/', '/status.json', '/events']) {
      const { status, body } = await ask(folder, path, { host })
      t.equal(status, 421, host)
      t.notMatch(body, 'machines')
    }
  for (const host of [
    'localhost:9751',
    'LOCALHOST',
    '127.0.0.1',
    '192.0.2.1:80',
    '[::1]:9751',
    'backup.example',
    'Backup.Example.:443',
  ])
    t.equal((await ask(folder, '/status.json', { host })).status, 200, host)
  t.match(await raw(folder, 'GET /status.json HTTP/1.0\r\n\r\n'), /^HTTP\/1\.1 421 /, 'without a name')
  t.match(await raw(folder, 'GET / HTTP/1.1\r\nConnection: close\r\n\r\n'), /^HTTP\/1\.1 400 /)
  t.match(await raw(folder, 'nonsense\r\n\r\n'), /^HTTP\/1\.1 400 /)
  t.match(await raw(folder, `GET / HTTP/1.1\r\nHost: localhost\r\nX: ${'x'.repeat(9000)}\r\n\r\n`), /^HTTP\/1\.1 431 /)
  for (const path of ['/status.json', '/events'])
    for (const site of ['cross-site', 'same-site'])
      t.equal((await ask(folder, path, { more: `Sec-Fetch-Site: ${site}\r\n` })).status, 403)
  t.equal((await ask(folder, '/status.json', { more: 'Sec-Fetch-Site: same-origin\r\n' })).status, 200)
})

t.test('only addresses, localhost and names of the configuration are ours, whatever the header says', async t => {
  const ours = new Set(['backup.example'])
  const word = fc.stringMatching(/^[a-z0-9.:@[\]\\/ %-]{0,24}$/)
  fc.assert(
    fc.property(word, word, (before, after) => {
      for (const name of ['localhost', 'backup.example', '127.0.0.1']) {
        const header = `${before}${name}${after}`
        const url = URL.canParse(`http://${header}/`) ? new URL(`http://${header}/`) : undefined
        const host = url?.hostname.replace(/\.$/, '')
        const isNamed = host !== undefined && (host === 'localhost' || ours.has(host) || /^[\d.]+$|^\[/.test(host))
        if (isOurHost(header, ours) && !isNamed)
          throw new Error(`${JSON.stringify(header)} is ${host} to a browser, and was let in`)
      }
    }),
    { numRuns: 3000 },
  )
  t.notOk(isOurHost(undefined, ours))
})

/** The dirty granules by number, as nbdinfo is told. */
async function mapOf({ uri }: Pick<TestAppliance, 'uri'>, name: string, bitmap: string): Promise<Set<number>> {
  const told = await run('nbdinfo', ['--json', `--map=qemu:dirty-bitmap:${bitmap}`, uri(name)])
  const dirty = new Set<number>()
  for (const { offset, length, type } of JSON.parse(told) as { offset: number; length: number; type: number }[])
    if (type & 1) for (let at = offset; at < offset + length; at += GRANULE) dirty.add(Math.floor(at / GRANULE))
  return dirty
}

t.test('the cells of the heat map are what NBD says of the same bitmaps', { skip: missing('nbdinfo') }, async t => {
  await using stack = new AsyncDisposableStack()
  // 300 granules, so a cell is two of them; and a disk that ends within a granule.
  const sizes = { root: 300 * GRANULE, data: 5 * GRANULE + 512 }
  const world = await start(stack, { root: Buffer.alloc(sizes.root), data: Buffer.alloc(sizes.data) })
  const { execute } = world
  const next = generator(7)
  const clients = { root: await world.nbd('db/root'), data: await world.nbd('db/data') }
  const write = async () => {
    for (const [name, client] of Object.entries(clients) as ['root' | 'data', (typeof clients)['root']][])
      for (let count = 0; count < 12; count++) {
        const offset = (next() % (sizes[name] / 512)) * 512
        await client.write(offset, Buffer.alloc(Math.min(512 * (1 + (next() % 300)), sizes[name] - offset), count + 1))
      }
  }
  for (const name of ['a', 'b', 'c']) {
    await execute('checkpoint-create', { machine: 'db', name })
    if (name !== 'b') await write()
  }
  const { machines } = await documentOf(world)
  t.same(
    machines[0]!.checkpoints.map(({ name }) => name),
    ['a', 'b', 'c'],
  )
  for (const { name, heat, size, clients } of machines[0]!.disks) {
    t.same([size, clients, heat.granularity, heat.granules], [sizes[name as 'root'], 1, GRANULE, Math.ceil(size / GRANULE)])
    t.same(
      heat.rows.map(({ checkpoint }) => checkpoint),
      ['c', 'b', 'a'],
    )
    for (const { checkpoint, cells, changed } of heat.rows) {
      const bitmap = `checkpoint-${checkpoint}`
      const id = `map-${name}-${checkpoint}`
      await execute('block-export-add', {
        type: 'nbd',
        id,
        'node-name': `db.${name}`,
        name: id,
        writable: true,
        bitmaps: [bitmap],
      })
      const dirty = await mapOf(world, id, bitmap)
      const expected = Array.from({ length: Math.ceil(heat.granules / heat.each) }, () => 0)
      for (const granule of dirty) expected[Math.floor(granule / heat.each)]!++
      t.same(cells, expected, `${name} since ${checkpoint}`)
      t.equal(changed, dirty.size * GRANULE)
      t.equal(dirty.size > 0, checkpoint !== 'b')
    }
  }
  // A later one, once nobody uses the bitmap: what is not whole is said, and never shown as a part.
  for (const { name } of machines[0]!.disks)
    for (const checkpoint of ['a', 'b', 'c']) await execute('block-export-del', { id: `map-${name}-${checkpoint}`, mode: 'hard' })
  await execute('block-dirty-bitmap-remove', { node: 'db.root', name: 'checkpoint-b' })
  const after = await documentOf(world)
  const [root, data] = after.machines[0]!.disks
  t.match(root!.heat.rows[1], { checkpoint: 'b', problem: /checkpoint inconsistent/, cells: undefined, changed: undefined })
  t.match(data!.heat.rows[1], { checkpoint: 'b', changed: 0 })
})

t.test('what is under way, what was done and what is wrong is in the document', async t => {
  await using stack = new AsyncDisposableStack()
  const more = `repositories: { local: { plugin: file, path: ./backup }, gone: { plugin: file, path: ./nowhere } }
schedules:
  nightly: { machines: [db], repository: local, stale-after: 26h, retries: 0 }
  other: { machines: [db], repository: gone, retries: 0, stale-after: 1h }
`
  const world = await start(stack, { root: Buffer.alloc(MiB, 1) }, more)
  const { execute, folder } = world
  const settled = async (isSo: (document: StatusDocument) => boolean) => {
    for (;;) {
      const document = await documentOf(world)
      if (isSo(document)) return document
      await sleep(50)
    }
  }
  const before = await settled(({ repositories }) => repositories.every(({ reading }) => !reading))
  t.match(before.repositories, [
    { name: 'local', plugin: 'file', missing: true },
    { name: 'gone', missing: true },
  ])
  t.match(before.concerns, [
    { level: 'problem', about: 'schedule nightly', text: 'has never made a good backup of db' },
    { level: 'problem', about: 'schedule other' },
    { level: 'notice', about: 'repository local', text: /stillpoint repo init local/ },
    { level: 'notice', about: 'repository gone' },
  ])
  const place = await openPlace('local', { target: { plugin: 'file', path: join(folder, 'backup') } }, createLog('silent'))
  stack.use(place)
  await initRepository(place.target, { cost: CHEAP })
  for (const name of ['nightly', 'other']) await execute('schedule-run', { name })
  const after = await settled(
    ({ schedules, repositories }) =>
      schedules.every(({ runs }) => runs.length === 1) && repositories[0]!.holds?.points.length === 1,
  )
  t.match(after.schedules[0], {
    name: 'nightly',
    mode: 'push',
    repository: 'local',
    runs: [{ outcome: 'done' }],
    good: [{ machine: 'db' }],
  })
  t.match(after.schedules[1], { name: 'other', runs: [{ outcome: 'failed' }] })
  const { holds } = after.repositories[0]!
  t.match(holds, { encrypted: false, older: 0, points: [{ machine: 'db', size: MiB, complete: true, consistency: 'crash' }] })
  t.ok(holds!.packs > 0 && holds!.bytes > 0)
  t.match(
    after.concerns.filter(({ about }) => about === 'schedule other').map(({ text }) => text),
    [/^the last run has failed: /, /has never made/],
  )
  t.notOk(after.concerns.some(({ about }) => about === 'schedule nightly' || about === 'repository local'))
  t.same(after.live.tasks, [])
  await execute('backup-begin', { machine: 'db', mode: 'pull', name: 'evening' })
  await execute('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: MiB })
  await execute('blockdev-backup', { 'job-id': 'job', device: 'db.root', target: 'n', sync: 'full', 'auto-finalize': false })
  const busy = await settled(({ live }) => live.tasks.some(({ status }) => status === 'pending'))
  t.match(busy.live.tasks, [
    { kind: 'pull', name: 'evening', what: 'db', status: 'open' },
    { kind: 'backup', name: 'job', status: 'pending', done: MiB, total: MiB },
  ])
  t.ok(busy.live.generation > after.live.generation, 'what has happened is told by the number')
})

t.test(
  'who watches is told at once and again when something is new; there is room for so many, and each who leaves makes some',
  async t => {
    await using stack = new AsyncDisposableStack()
    const { folder, execute } = await start(stack)
    const watch = async () => {
      const socket = connect(join(folder, 'web.sock'))
      stack.defer(() => void socket.destroy())
      const told = {
        text: '',
        socket,
        has: (what: RegExp) => waitFor(() => what.test(told.text)),
        until: (isSo: () => boolean) => waitFor(isSo),
      }
      const waiting = new Set<() => void>()
      const waitFor = async (isSo: () => boolean) => {
        while (!isSo()) await new Promise<void>(resolve => waiting.add(resolve))
      }
      socket.on('data', (data: Buffer) => {
        told.text += data.toString()
        for (const wake of waiting) wake()
        waiting.clear()
      })
      socket.write('GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n')
      await told.has(/\r\n\r\n/)
      return told
    }
    const first = await watch()
    t.match(first.text, /^HTTP\/1\.1 200 OK\r\n[^]*Content-Type: text\/event-stream\r\n/)
    await first.has(/event: live\ndata: \{.*\}\n\n/)
    await execute('backup-begin', { machine: 'db', mode: 'pull', name: 'evening' })
    await first.has(/data: \{.*"name":"evening".*\}\n\n/)
    const generationOf = () => Number(/.*"generation":(\d+)/s.exec(first.text)?.[1])
    const before = generationOf()
    await execute('checkpoint-create', { machine: 'db', name: 'new' })
    await first.until(() => generationOf() > before)
    const others = []
    for (let count = 1; count < 24; count++) others.push(await watch())
    t.ok(others.every(({ text }) => text.startsWith('HTTP/1.1 200 ')))
    t.match((await ask(folder, '/events')).headers, { 'retry-after': '30' })
    t.equal((await ask(folder, '/status.json')).status, 200, 'who only asks is answered still')
    others[0]!.socket.destroy()
    for (;;) {
      const again = await watch()
      if (again.text.startsWith('HTTP/1.1 200 ')) break
      again.socket.destroy()
      await sleep(20)
    }
  },
)

/** A response that takes what it is given when the test says so. */
class Taker extends EventEmitter {
  writableNeedDrain = false
  readonly written: string[] = []
  destroyed = false

  write(text: string) {
    if (this.writableNeedDrain) throw new Error('written to one who has not taken the last')
    this.written.push(text)
    return true
  }

  destroy() {
    this.destroyed = true
    this.emit('close')
  }
}

t.test('who takes nothing is told no more, and dropped; who is slow is told the newest only', async t => {
  let now = '1'
  using subscribers = new Subscribers(() => now, 2 ** 30)
  const [slow, stuck, well] = [new Taker(), new Taker(), new Taker()]
  for (const one of [slow, stuck, well]) subscribers.add(one as unknown as ServerResponse)
  slow.writableNeedDrain = stuck.writableNeedDrain = true
  for (now of ['2', '3', '4']) subscribers.tick()
  slow.writableNeedDrain = false
  subscribers.tick()
  const lives = ({ written }: Taker) => written.flatMap(text => /data: (.*)/.exec(text)?.[1] ?? [])
  t.same(lives(slow), ['1', '4'])
  t.same(lives(well), ['1', '2', '3', '4'])
  for (let tick = 0; tick < 20; tick++) subscribers.tick()
  t.ok(stuck.destroyed && !slow.destroyed && !well.destroyed)
  t.equal(subscribers.count, 2)
  t.same(lives(well), ['1', '2', '3', '4'], 'and nothing twice')
  t.ok(
    well.written.some(text => text.startsWith(':')),
    'but a sign of life now and then',
  )
})

t.test('a rate is what was done lately, over the time it took', async t => {
  let now = 0
  const rates = new Rates(() => now)
  const job = {}
  t.equal(rates.of(job, 0), undefined)
  now += 1000
  t.equal(rates.of(job, 500), 500)
  for (let second = 1; second <= 60; second++) {
    now += 1000
    rates.of(job, 500 + second * 2000)
  }
  t.equal(rates.of(job, 120_500), 2000, 'asked again at once, it is the same')
  now += 1000
  t.equal(rates.of(job, 0), undefined, 'begun anew')
  t.equal(rates.of({}, 5), undefined)
})

t.test('a daemon that ends lets go of all who watch', async t => {
  await using stack = new AsyncDisposableStack()
  const { folder, appliance } = await start(stack)
  const socket = connect(join(folder, 'web.sock'))
  socket.write('GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n')
  await once(socket, 'data')
  const closed = new Promise<boolean>(resolve => socket.once('close', () => resolve(true)))
  socket.on('error', () => socket.destroy())
  await appliance[Symbol.asyncDispose]()
  t.ok(await closed)
})
