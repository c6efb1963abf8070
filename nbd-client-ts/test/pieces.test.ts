// The small parts: coverage against a simple model, the intake against every cut, URIs.

import fc from './property.ts'
import t from 'tap'
import { NbdClient, formatNbdUri, parseNbdUri } from '../src/index.ts'
import { Coverage } from '../src/coverage.ts'
import { Intake } from '../src/intake.ts'

t.test('coverage agrees with a set of bytes', async () => {
  const chunks = fc.array(fc.tuple(fc.integer({ min: -2, max: 42 }), fc.integer({ min: 0, max: 12 })), { maxLength: 30 })
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 40 }), chunks, (length, chunks) => {
      const START = 1000
      const coverage = new Coverage(START, length)
      const model = new Set<number>()
      for (const [offset, size] of chunks) {
        const wanted = Array.from({ length: size }, (_, index) => offset + index)
        const right = size > 0 && wanted.every(at => at >= 0 && at < length && !model.has(at))
        let taken = true
        try {
          coverage.add(START + offset, size)
        } catch {
          taken = false
        }
        if (taken !== right) throw new Error(`${size} bytes at ${offset} were ${taken ? '' : 'not '}taken`)
        if (right) for (const at of wanted) model.add(at)
        if (coverage.complete !== (model.size === length)) throw new Error(`complete is ${coverage.complete}`)
      }
    }),
    { numRuns: 2000 },
  )
})

t.test('a million pieces from back to front cost little', async t => {
  const coverage = new Coverage(0, 1 << 20)
  for (let at = (1 << 20) - 1; at >= 0; at--) coverage.add(at, 1)
  t.ok(coverage.complete)
})

t.test('an intake hands out the same pieces however the stream is cut', async t => {
  const stream = Buffer.from(Array.from({ length: 200_000 }, (_, index) => index % 251))
  const sizes = [1, 16, 0, 40_000, 64, 7, 100_000, 3, 0, 16]
  const parse = (cuts: number[], direct: boolean) => {
    const intake = new Intake()
    const pieces: string[] = []
    const filled: Buffer[] = []
    function* parser(): Generator<void, never, void> {
      for (let turn = 0; ; turn++) {
        const size = sizes[turn % sizes.length]!
        if (turn % 3 === 2) {
          yield intake.skip(size)
          pieces.push(`skip ${size}`)
        } else if (size <= 64 && turn % 2 === 0) {
          yield intake.view(size)
          pieces.push(intake.bytes.toString('hex', intake.at, intake.at + size))
        } else {
          const target = Buffer.alloc(size)
          yield intake.fill(target)
          filled.push(target)
          pieces.push(`fill ${filled.length}`)
        }
      }
    }
    intake.start(parser())
    for (const [index, cut] of cuts.entries()) {
      for (let at = cut, end = cuts[index + 1] ?? stream.length; at < end;) {
        const place = direct ? intake.place() : undefined
        if (!place) {
          intake.received(stream.subarray(at, end))
          break
        }
        const copied = stream.copy(place, 0, at, end)
        intake.placed(copied)
        at += copied
      }
    }
    return { pieces, filled }
  }
  const whole = parse([0], false)
  t.ok(whole.pieces.length > 10)
  for (let cut = 1; cut < stream.length; cut += cut < 300 ? 1 : 997) {
    for (const direct of [false, true])
      if (JSON.stringify(parse([0, cut], direct).pieces) !== JSON.stringify(whole.pieces)) t.fail(`cut at ${cut}`)
  }
  const many = parse(
    Array.from({ length: 20_000 }, (_, index) => index * 10),
    true,
  )
  t.same(many.pieces, whole.pieces)
  t.ok(many.filled.every((buffer, index) => buffer.equals(whole.filled[index]!)))
})

const tcp = (host: string, exportName = '', port = 10809, more = {}) => ({ address: { host, port }, exportName, ...more })

t.test('URIs mean what the specification says', async t => {
  for (const [uri, wanted] of [
    ['nbd://example.com', tcp('example.com')],
    ['nbd://example.com/', tcp('example.com')],
    ['nbd://example.com/disk', tcp('example.com', 'disk')],
    ['nbd://example.com//disk', tcp('example.com', '/disk')],
    ['nbd://example.com/hello%20world', tcp('example.com', 'hello world')],
    ['nbd://example.com/a/b%2Fc%3F', tcp('example.com', 'a/b/c?')],
    ['NBD://example.com:99/%C3%BC', tcp('example.com', 'ü', 99)],
    ['nbd:///disk', tcp('localhost', 'disk')],
    ['nbd://[::1]/x', tcp('::1', 'x')],
    ['nbd://[fe80::1%25eth0]:5/x', tcp('fe80::1%eth0', 'x', 5)],
    ['nbd://127.0.0.1:10809/', tcp('127.0.0.1')],
    ['nbd://h:/x', tcp('h', 'x')],
    ['nbd://h/x?x-mine=1&', tcp('h', 'x')],
    ['nbds://h/x', tcp('h', 'x', 10809, { tls: {} })],
    ['nbds://alice@h/x', tcp('h', 'x', 10809, { tls: { user: 'alice' } })],
    [
      'nbds://a%40b@h/x?tls-type=psk&tls-psk-file=/k%20eys',
      tcp('h', 'x', 10809, { tls: { type: 'psk', user: 'a@b', pskFile: '/k eys' } }),
    ],
    [
      'nbds://h?tls-verify-peer=0&tls-hostname=g&tls-certificates=/pki',
      tcp('h', '', 10809, { tls: { verifyPeer: false, hostname: 'g', certificates: '/pki' } }),
    ],
    ['nbd+unix:///?socket=/run/x.sock', { address: { path: '/run/x.sock' }, exportName: '' }],
    ['nbd+unix:///disk?socket=nbd.sock', { address: { path: 'nbd.sock' }, exportName: 'disk' }],
    ['nbd+unix:///?socket=%00/abstract', { address: { path: '\0/abstract' }, exportName: '' }],
    [
      'nbds+unix://alice@/d?socket=/s&tls-hostname=h',
      { address: { path: '/s' }, exportName: 'd', tls: { user: 'alice', hostname: 'h' } },
    ],
  ] as const) {
    t.same(parseNbdUri(uri), wanted, uri)
    t.same(parseNbdUri(formatNbdUri(wanted)), wanted, `${formatNbdUri(wanted)} and back`)
  }
})

t.test('URIs that cannot be used say why', async t => {
  for (const [uri, why] of [
    ['example.com', /is no URI/],
    ['http://example.com/', /'http' is none of the schemes/],
    ['constructor://example.com/', /is none of the schemes/],
    ['nbd+vsock://2:10809/x', /'nbd\+vsock' is none of the schemes .*; 'socat UNIX-LISTEN/],
    ['NBD+SSH://host/x', /'NBD\+SSH' is none of the schemes .*; 'ssh -N -L/],
    ['nbd+unix:///x', /needs \?socket=PATH/],
    ['nbd+unix:///x?socket=', /needs \?socket=PATH/],
    ['nbd+unix://host/x?socket=/s', /has no host/],
    ['nbd+unix:///x?socket=/s%00x', /NUL/],
    ['nbd://h/x?socket=/s', /needs the scheme nbd\+unix/],
    ['nbd://h/a%00b', /NUL/],
    ['nbd://h/%ff', /'%'/],
    ['nbd://h/%zz', /'%'/],
    ['nbd://h/x#y', /no fragment/],
    ['nbd://h:0/', /port 0/],
    ['nbd://h:65536/', /port 65536/],
    ['nbd://h:x/', /names no host/],
    ['nbd://::1/', /names no host/],
    ['nbd://[]/', /no IPv6 address/],
    ['nbd://[example.com]/', /no IPv6 address/],
    [`nbd://h/${'a'.repeat(4097)}`, /longer than 4096/],
    ['nbd://h/?sokcet=x', /'sokcet' is no parameter/],
    ['nbds://h/?tls-username=alice', /write nbds:\/\/USER@host/],
    ['nbds://h/?tls-hostname=', /'tls-hostname' is empty/],
    ['nbds://h/?tls-psk-file=', /'tls-psk-file' is empty/],
    ['nbds://h/?tls-verify-peer=yes', /must be 0 or 1/],
    ['nbds://h/?tls-type=ssl', /anon, x509 or psk/],
    ['nbds://h/?tls-type=psk&tls-type=psk', /is there twice/],
    ['nbd://h/?tls-psk-file=/k', /means nothing without TLS; write nbds/],
  ] as const)
    t.throws(() => parseNbdUri(uri), { name: 'NbdUriError', message: why }, uri)
})

t.test('what nobody can connect to is refused before anybody tries', async t => {
  for (const [target, message] of [
    [{ path: '' }, /none may be empty/], // which would be the port of localhost
    [{ host: '' }, /none may be empty/],
    [{}, /none may be empty/],
    [undefined, /none may be empty/],
    [{ path: '/x'.repeat(60) }, /longer than 107 bytes/],
    [{ path: '/tmp/a\0b' }, /NUL/],
    [{ host: 'a\0b' }, /NUL/],
    ['nbd://a%00b/', /NUL/],
    [{ host: 'localhost', port: 65_536 }, /port 65536 is not between/],
    [{ host: 'localhost', port: 0.5 }, /port 0\.5 is not between/],
  ] as const)
    await t.rejects(NbdClient.connect(target as never), { name: 'NbdUriError', message }, JSON.stringify(target))
  const target = 'nbd+unix:///?socket=/nowhere/at-all'
  for (const options of [
    { connectTimeout: 2 ** 31 }, // which is 1 ms to a timer
    { requestTimeout: 2 ** 31 },
    { assumeBlockSizes: { minimum: 0 } },
    { assumeBlockSizes: { minimum: 1 << 21 } },
    { assumeBlockSizes: { minimum: 65_536, maximum: 4096 } },
  ])
    await t.rejects(NbdClient.connect(target, options), { name: 'NbdUsageError' }, JSON.stringify(options))
  const message = /^no connection to \/nowhere\/at-all: connect ENOENT/
  await t.rejects(NbdClient.connect(target, { assumeBlockSizes: { minimum: 65_536 } }), { code: 'ENOENT', message })
})

t.test('whatever an export is called, its URI comes back', async () => {
  const text = fc.string({ unit: 'grapheme', maxLength: 20 }).filter(name => !name.includes('\0') && name.isWellFormed())
  const address = fc.oneof(
    fc.record({ host: fc.domain(), port: fc.integer({ min: 1, max: 65_535 }) }),
    fc.record({ path: text.filter(path => path !== '') }),
  )
  const tls = fc.record(
    { user: text, hostname: fc.domain(), verifyPeer: fc.boolean(), pskFile: text.filter(path => path !== '') },
    { requiredKeys: [] },
  )
  fc.assert(
    fc.property(address, text, fc.option(tls, { nil: undefined }), (address, exportName, tls) => {
      const uri = { address, exportName, ...(tls && { tls }) }
      const back = parseNbdUri(formatNbdUri(uri))
      if (JSON.stringify(back) !== JSON.stringify(parseNbdUri(formatNbdUri(back)))) throw new Error('it changes')
      t.same(back, uri)
    }),
    { numRuns: 300 },
  )
})
