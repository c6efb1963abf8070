// The parts that answers are made of: times, spans, shares, tables, and addresses that others can use.

import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from '../helpers/property.ts'
import { parseNbdUri } from 'nbd-client-ts'
import t from 'tap'
import { Progress } from '../../src/cli/progress.ts'
import { exportUri, sessionUris } from '../../src/cli/export-uri.ts'
import { clean, formatShare, formatSpan, formatTime } from '../../src/cli/format.ts'
import { facts, table, type Column } from '../../src/cli/table.ts'
import { missing, run } from '../helpers/tools.ts'

t.test('times are those of date(1), in any zone', { skip: missing('date') }, async t => {
  const before = process.env['TZ']
  t.teardown(() => {
    if (before === undefined) delete process.env['TZ']
    else process.env['TZ'] = before
  })
  // Summer and winter, half hours, both sides of Greenwich, and around a change of clocks.
  const instants = ['2025-03-30T00:59:59Z', '2025-03-30T01:00:00Z', '2025-07-01T12:00:00.999Z', '2025-12-31T23:30:00Z']
  for (const zone of ['UTC', 'Europe/Berlin', 'Asia/Kolkata', 'America/St_Johns', 'Pacific/Chatham']) {
    process.env['TZ'] = zone
    const theirs = await Promise.all(instants.map(instant => run('date', ['-d', instant, '+%Y-%m-%d %H:%M:%S %:z'])))
    t.same(
      instants.map(formatTime),
      theirs.map(line => line.trim()),
      zone,
    )
  }
  t.equal(formatTime('no \x1btime'), 'no \\x1btime')
})

t.test('spans have two units at most, shares are never rounded to none or all', async t => {
  const spans = [0, 499, 1000, 59_600, 3_600_000, 3_661_000, 86_400_000, 90_000_000, -5]
  t.same(spans.map(formatSpan), ['0 s', '0 s', '1 s', '1 min', '1 h', '1 h 1 min', '1 d', '1 d 1 h', '0 s'])
  t.same(
    [formatShare(0, 10), formatShare(1, 1e6), formatShare(999_999, 1e6), formatShare(10, 10), formatShare(1, 0)],
    ['0 %', '1 %', '99 %', '100 %', '0 %'],
  )
})

t.test('no text reaches a terminal as a command', async () => {
  fc.assert(
    // oxlint-disable-next-line no-control-regex -- those are what it is about
    fc.property(fc.string({ unit: 'binary' }), text => !/[\x00-\x1f\x7f-\x9f]/.test(clean(text))),
  )
  fc.assert(
    fc.property(fc.array(fc.string()), names => {
      const text = table(names, [{ title: 'NAME', of: name => name }])
      return text.split('\n').length === (names.length > 0 ? names.length + 2 : 1)
    }),
  )
})

t.test('columns are aligned, numbers to the right, and what is unknown is a dash or left out', async t => {
  const rows = [
    { name: 'a', size: 5 },
    { name: 'long name', size: 12_345 },
    { name: '', size: undefined },
  ]
  t.equal(
    table(rows, [
      { title: 'SIZE', right: true, of: ({ size }) => size },
      { title: 'NAME', of: ({ name }) => name },
    ]),
    ' SIZE  NAME\n    5  a\n12345  long name\n    -\n',
  )
  t.equal(facts({ one: 1, another: undefined, more: 'x\ny' }), 'one   1\nmore  x\\x0ay\n')
})

t.test('a narrow terminal has whole words, a last column that goes on below, or a list for each row', async t => {
  const rows = [
    { name: 'db', why: 'the bitmap has what changed since checkpoint one' },
    { name: 'web', why: undefined },
  ]
  const columns: Column<(typeof rows)[number]>[] = [
    { title: 'NAME', of: ({ name }) => name },
    { title: 'WHY', of: ({ why }) => why },
  ]
  t.equal(table(rows, columns, 40), 'NAME  WHY\ndb    the bitmap has what changed since\n      checkpoint one\nweb   -\n')
  t.equal(
    table(rows, columns, 20),
    'NAME  db\nWHY   the bitmap has what\n      changed since checkpoint\n      one\n\nNAME  web\n',
  )
  const word = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), minLength: 1, maxLength: 24 })
  const sentence = fc.array(word, { minLength: 1, maxLength: 12 }).map(words => words.join(' '))
  fc.assert(
    fc.property(
      fc.array(fc.tuple(word, sentence), { minLength: 1, maxLength: 5 }),
      fc.integer({ min: 60, max: 200 }),
      (all, width) => {
        const text = table(
          all,
          [
            { title: 'NAME', of: ([name]) => name },
            { title: 'WHY', of: ([, why]) => why },
          ],
          width,
        )
        const said = text.split(/\s+/).filter(Boolean)
        const meant = ['NAME', 'WHY', ...all.flatMap(([name, why]) => [name, ...why.split(' ')])]
        return text.split('\n').every(line => line.length <= width) && said.join(' ') === meant.join(' ')
      },
    ),
  )
})

const inet = (host: string, port: number) => exportUri({ type: 'inet', host, port }, 'db/root')

t.test('an address says the same to who reads it, whatever the names', async t => {
  const text = fc.string({ minLength: 1 }).filter(text => !text.includes('\0'))
  fc.assert(
    fc.property(text, text, (path, name) => {
      const { address, exportName } = parseNbdUri(exportUri({ type: 'unix', path: `/${path}` }, name))
      return exportName === name && 'path' in address && address.path === `/${path}`
    }),
  )
  t.equal(inet('127.0.0.1', 10809), 'nbd://127.0.0.1/db/root')
  t.equal(inet('::', 10810), 'nbd://[::1]:10810/db/root')
  t.equal(inet('nbd.example', 1), 'nbd://nbd.example:1/db/root')
  t.equal(exportUri({ type: 'inet', host: '192.0.2.1', port: 10809, tls: true }, 'db/root'), 'nbds://192.0.2.1/db/root')
  t.equal(exportUri({ type: 'unix', path: '\0name' }, 'db/root'), 'nbd+unix:///db/root?socket=%00name')
  t.same(sessionUris({ socket: '/s.sock' }, 'root', [{ type: 'unix', path: '/other' }]), ['nbd+unix:///root?socket=/s.sock'])
  t.same(sessionUris({}, 'root', []), [])
})

t.test(
  'nbdinfo and qemu-img find an export of an odd name at an odd place',
  { skip: missing('qemu-nbd', 'nbdinfo', 'qemu-img') },
  async t => {
    const folder = mkdtempSync(`${tmpdir()}/a b?c&d#e%f+g'h`)
    t.teardown(() => rmSync(folder, { recursive: true }))
    mkdirSync(`${folder}/[i]`)
    const [socket, name] = [`${folder}/[i]/nbd.sock`, "a/b c?&#%+=é'*"]
    const image = `${folder}/image.raw`
    await run('qemu-img', ['create', '-q', '-f', 'raw', `file:${image}`, '1M'])
    const server = spawn('qemu-nbd', ['--persistent', '--socket', socket, '--export-name', name, '--format', 'raw', image], {
      stdio: 'ignore',
    })
    const gone = new Promise<void>(resolve => server.once('exit', () => resolve()))
    t.teardown(() => {
      server.kill()
      return gone
    })
    for (let tries = 0; !existsSync(socket) && tries < 200; tries++) await sleep(25)
    const uri = exportUri({ type: 'unix', path: socket }, name)
    t.equal((await run('nbdinfo', ['--size', uri])).trim(), String(1 << 20))
    t.equal(JSON.parse(await run('qemu-img', ['info', '--output=json', uri]))['virtual-size'], 1 << 20)
  },
)

/** What stands on a terminal meanwhile. */
const told = (isTTY: boolean, columns?: number) => {
  const written: string[] = []
  const out = { isTTY, ...(columns !== undefined && { columns }), write: (text: string) => written.push(text) }
  {
    using shown = new Progress('restoring a disk', 1000, { out, afterMs: 0 })
    shown.at(250, undefined, ', and much else of which there is no room on a line of a small terminal')
  }
  return written
}

t.test('how far something has come is one line of a terminal, which goes in the end', async t => {
  t.same(told(true, 30), ['\r...: 25 %, and much else of w\x1b[K', '\r\x1b[K'])
  t.equal(told(true)[0]!.length, 80 - 1 + '\r\x1b[K'.length)
  t.same(told(false), [], 'and nothing where nobody looks')
  const written: string[] = []
  const out = { isTTY: true, columns: 80, write: (text: string) => written.push(text) }
  using shown = new Progress('checking', 0, { out, afterMs: 0 })
  shown.says('2 packs, 1 MiB read')
  t.same(written, ['\rchecking: 2 packs, 1 MiB read\x1b[K'], 'where nobody knows how much there is')
})
