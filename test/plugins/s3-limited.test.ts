// The S3 target on stores that cannot do all: what it finds out, what it refuses, what it does in another way; and what it says of each
// mistake in the settings that a store tells of.

import net from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import t, { type Test } from 'tap'
import { NotSupported } from '../../src/base/errors.ts'
import { createLog } from '../../src/base/log.ts'
import { NotThere, PreconditionFailed } from '../../src/push/target.ts'
import { probe } from '../../src/repository/probe.ts'
import { newRepository, pushDisks, restored, sourceOf } from '../helpers/push-point.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'
import { openS3, optionsFor } from '../helpers/s3.ts'
import { refusal, ScriptedS3, type Answer, type Limits, type Request } from '../helpers/scripted-s3.ts'
import { S3Target } from '../../plugins/s3/s3-target.ts'
import { listed, targetSuite } from '../helpers/target-suite.ts'

const open = (endpoint: string) => openS3(endpoint, 'bucket', { retry: '200ms', timeout: '1s' })
const signedAt = ({ headers }: Request) =>
  Date.parse(String(headers['x-amz-date']).replace(/^(....)(..)(..)T(..)(..)(..)Z$/, '$1-$2-$3T$4:$5:$6Z'))
const list = (entries: string, truncated = false): Answer => ({
  status: 200,
  body: `<ListBucketResult><IsTruncated>${truncated}</IsTruncated>${entries}</ListBucketResult>`,
})
const entry = (key: string, size = '1', time = '2026-01-01T00:00:00Z') =>
  `<Contents><Key>${key}</Key><Size>${size}</Size><LastModified>${time}</LastModified></Contents>`

async function storeWith(t: Test, limits: Limits = {}, more: Record<string, unknown> = {}) {
  const store = await ScriptedS3.listen(limits)
  t.teardown(() => store[Symbol.asyncDispose]())
  const target = await openS3(store.endpoint, 'bucket', more)
  t.teardown(() => target[Symbol.asyncDispose]())
  return { store, target }
}

const suited = async (name: string, limits: Limits, conditional: boolean) => {
  const store = await ScriptedS3.listen(limits)
  targetSuite(t, name, async stack => stack.use(await openS3(store.endpoint, 'bucket', { prefix: 'p' })), { conditional })
}
await suited('a store that does all, as Amazon’s', { pageSize: 7 }, true)
await suited('a store without conditions and batches', { create: 'refused', swap: 'refused', batch: false, pageSize: 7 }, false)

/** Each name gets a prefix, each text is CDATA, and attributes come along. */
const rewritten = (xml: string) =>
  `\ufeff<?xml version='1.0'?>\r\n${xml
    .replaceAll(/>([^<]+)</g, (_, text: string) => `><![CDATA[${text.replaceAll('&lt;', '<').replaceAll('&amp;', '&')}]]><`)
    .replaceAll(/<(\/?)(\w+)/g, (_, slash: string, name: string) => `<${slash}s3:${name}${slash ? '' : ' s3:of="a>b"'}`)}`
const gateway = (answer: Answer, { query }: Request): Answer => {
  const headers = { ...answer.headers, connection: 'close' }
  if (typeof answer.body !== 'string') return { ...answer, headers }
  const body = rewritten(answer.body)
  return query.has('list-type')
    ? { ...answer, headers: { ...headers, 'content-encoding': 'gzip' }, body: gzipSync(body) }
    : { ...answer, headers, body }
}
for (const [name, etag] of [
  ['several parts', (md5: string) => `"${md5}-2"`],
  ['weak tags', (md5: string) => `W/"${md5}"`],
] as const)
  await suited(`a store with ETags as of ${name}, behind a gateway`, { etag, gateway, pageSize: 9 }, true)

t.test('a repository is whole on a store whose ETags have no quotes, and behind a gateway', async t => {
  const { target } = await storeWith(t, { etag: md5 => `${md5}-12`, swap: 'bare', gateway, pageSize: 3 })
  const bare = { etag: (md5: string) => md5, pageSize: 3 }
  t.match(await probe(target), { cas: false }, 'a tag that it does not know itself is none')
  for (const store of [target, (await storeWith(t, { ...bare, swap: 'bare' })).target]) {
    const repository = await newRepository(store)
    const bytes = diskContent(40 * 65536, 1)
    const { key } = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes) }])
    t.ok((await restored(repository, key, 'root')).equals(bytes))
  }
})

t.test('an error that comes under 200 is an error, and what may be mended by time is asked again', async t => {
  const { target, store } = await storeWith(t)
  await target.put('x', Buffer.from('x'))
  const asks: (() => Promise<unknown>)[] = [
    () => target.put('x', Buffer.from('y')),
    () => listed(target, ''),
    () => target.delete(['a', 'b', 'c']),
  ]
  for (const ask of asks) {
    let failures = 2
    store.script = () => (failures-- > 0 ? { ...refusal(200, 'InternalError'), headers: { etag: '"x"' } } : undefined)
    await ask()
    t.equal(failures, -1, 'three times in all')
    store.script = () => refusal(200, 'AccessDenied')
    await t.rejects(ask(), { name: 'Denied' })
  }
  store.script = () => undefined
  const error = Buffer.from('<Error><Code>InternalError</Code></Error>')
  await target.put('x', error)
  t.ok(Buffer.from((await target.get('x')).body).equals(error), 'an object may hold what it likes')
})

t.test('a reply that ends too early is asked for again, and one that is not packed as it says is told of', async t => {
  const { target, store } = await storeWith(t)
  await target.put('x', Buffer.from('0123456789'))
  let cuts = 2
  store.script = ({ method }) =>
    method === 'GET' && cuts-- > 0
      ? { status: 206, headers: { 'content-range': 'bytes 2-5/10', connection: 'close' }, body: '23' }
      : undefined
  t.equal(String((await target.get('x', { range: { offset: 2, length: 4 } })).body), '2345')
  t.equal(cuts, -1)
  t.equal(String((await target.get('x', { range: { offset: 8, length: 4 } })).body), '89', 'which the object’s end is not')
  store.script = () => ({ status: 200, headers: { 'content-encoding': 'gzip' }, body: 'none' })
  await t.rejects(target.get('x'), { name: 'NotS3', message: /something compresses what the store sends/ })
  store.script = () => ({ status: 200, headers: { 'content-encoding': 'gzip' }, body: gzipSync(Buffer.alloc(100_000_000)) })
  await t.rejects(listed(target, ''), { name: 'NotS3' }, 'nor is memory made for what it would be')
  t.ok(store.requests.every(({ headers }) => headers['accept-encoding'] === 'identity'))
})

t.test('a listing goes on behind pages without keys, ends only where the store says so, and passes over folders', async t => {
  const { target, store } = await storeWith(t)
  const token = () => store.requests.at(-1)!.query.get('continuation-token')
  store.script = () =>
    token() === null && store.requests.at(-1)!.query.get('start-after') === null
      ? list('<NextContinuationToken>one</NextContinuationToken>', true)
      : token() === 'one'
        ? list(`${entry('a')}<NextContinuationToken>two</NextContinuationToken>`, true)
        : list(entry('b/') + entry('b/c'))
  t.same(
    (await listed(target, '')).map(({ key }) => key),
    ['a', 'b/c'],
  )
  store.script = () => list('<NextContinuationToken>one</NextContinuationToken>', true)
  await t.rejects(listed(target, ''), { message: /gives no keys/ }, 'nor for ever')
  for (const truncated of ['', '<IsTruncated/>', '<IsTruncated>1</IsTruncated>']) {
    store.script = () => ({ status: 200, body: `<ListBucketResult>${truncated}${entry('a')}</ListBucketResult>` })
    await t.rejects(listed(target, ''), { message: /does not say whether its listing goes on/ })
  }
  store.script = () => list(entry('points/a') + entry('q'))
  await t.rejects(listed(target, 'points/'), { message: /has an entry that cannot be: 'q'/ }, 'what was not asked for')
})

t.test('a store that refuses or ignores conditions is found out, and they are refused, never pretended', async t => {
  for (const [limits, why] of [
    [{ create: 'refused', swap: 'refused' }, /501 NotImplemented to If-None-Match/],
    [{ create: 'ignored', swap: 'ignored' }, /accepts If-None-Match and ignores it/],
  ] as const) {
    const { target, store } = await storeWith(t, limits)
    await t.rejects(target.put('x', Buffer.alloc(1), { ifAbsent: true }), { name: 'NotSupported', message: why })
    await t.rejects(target.put('x', Buffer.alloc(1), { ifMatch: 'x' }), { name: 'NotSupported', message: why })
    await t.rejects(target.get('x'), NotThere, 'and nothing was written')
    t.same(await listed(target, ''), [], 'nor left by asking')
    const asked = store.requests.length
    await t.rejects(target.put('y', Buffer.alloc(1), { ifAbsent: true }), NotSupported)
    t.equal(store.requests.length, asked, 'it is asked once')
    t.match(await probe(target), { cas: false, why })
  }
  for (const swap of ['refused', 'ignored'] as const) {
    const { target } = await storeWith(t, { swap })
    await target.put('x', Buffer.alloc(1), { ifAbsent: true })
    await t.rejects(target.put('x', Buffer.alloc(1), { ifAbsent: true }), PreconditionFailed, 'creates are kept')
    await t.rejects(target.put('x', Buffer.alloc(1), { ifMatch: 'x' }), { name: 'NotSupported', message: /If-Match/ })
    t.match(await probe(target), { cas: false })
  }
})

t.test('a repository on a store without conditions has one writer, and is whole', async t => {
  const { target } = await storeWith(t, { create: 'ignored', swap: 'ignored', batch: false })
  const repository = await newRepository(target)
  t.equal(repository.cas, false)
  const bytes = diskContent(40 * 65536, 1)
  const { key } = await pushDisks(repository, [{ name: 'root', source: sourceOf(bytes) }])
  t.ok((await restored(repository, key, 'root')).equals(bytes))
})

t.test('many keys are deleted with one request, a few one by one, and what the store could not is tried again', async t => {
  const { target, store } = await storeWith(t)
  const keys = Array.from({ length: 2500 }, (_, index) => `key/${index}`)
  for (const key of keys) store.objects.set(key, { body: Buffer.alloc(0), tag: 'x', headers: {} })
  store.requests.length = 0
  let failures = 1
  store.script = ({ method }) =>
    method === 'POST' && failures-- > 0
      ? { status: 200, body: '<DeleteResult><Error><Key>key/1</Key><Code>InternalError</Code></Error></DeleteResult>' }
      : undefined
  await target.delete(keys)
  t.equal(store.objects.size, 999, 'of what the script answered for, only what it named is asked for again')
  t.equal(store.requests.filter(({ method }) => method === 'POST').length, 4)
  store.script = ({ method }) =>
    method === 'POST'
      ? { status: 200, body: '<DeleteResult><Error><Key>key/1</Key><Code>AccessDenied</Code></Error></DeleteResult>' }
      : undefined
  await t.rejects(target.delete(keys), { name: 'Denied', message: /may not delete 'key\/1'/ })
  store.requests.length = 0
  await target.delete(['a', 'b'])
  t.same(
    store.requests.map(({ method }) => method),
    ['DELETE', 'DELETE'],
  )
})

t.test('who may delete objects and not several at once deletes them one by one', async t => {
  const { target, store } = await storeWith(t)
  for (const key of ['a', 'b', 'c']) await target.put(key, Buffer.from('x'))
  store.script = ({ method }) => (method === 'POST' ? refusal(403, 'AccessDenied') : undefined)
  await target.delete(['a', 'b', 'c'])
  t.equal(store.objects.size, 0)
  const asked = store.requests.length
  await target.delete(['a', 'b', 'c'])
  t.ok(
    store.requests.slice(asked).every(({ method }) => method === 'DELETE'),
    'and does so from then on',
  )
})

t.test('locks are refused where the bucket has none, and where the store only says so', async t => {
  const lockUntil = new Date(Date.now() + 3_600_000)
  const { target: without } = await storeWith(t)
  await t.rejects(without.put('x', Buffer.alloc(1), { lockUntil }), {
    name: 'NotSupported',
    message: /the bucket has no object lock/,
  })
  const { target: lying } = await storeWith(t, { lock: 'ignored' })
  await t.rejects(lying.put('x', Buffer.alloc(1), { lockUntil }), { name: 'NotSupported', message: /was to be locked/ })
  const { target, store } = await storeWith(t, { lock: 'kept' }, { 'lock-mode': 'GOVERNANCE' })
  await target.put('x', Buffer.alloc(1), { lockUntil })
  t.match(store.objects.get('x')!.headers, {
    'x-amz-object-lock-mode': 'GOVERNANCE',
    'x-amz-object-lock-retain-until-date': lockUntil.toISOString(),
  })
})

/** What opening says when the store answers this. */
async function openingSays(t: Test, script: (request: Request) => Answer | undefined, more: Record<string, unknown> = {}) {
  const store = await ScriptedS3.listen()
  t.teardown(() => store[Symbol.asyncDispose]())
  store.script = script
  return openS3(store.endpoint, 'bucket', more).then(
    async target => {
      await target[Symbol.asyncDispose]()
      return t.fail('it opened')
    },
    (error: unknown) => error,
  )
}

t.test('each mistake has a sentence of its own that says what to do', async t => {
  const mistakes: [Answer, string, RegExp][] = [
    [refusal(403, 'InvalidAccessKeyId'), 'WrongAccessKey', /no access key 'ACCESSKEYOFTESTS' at this store; look at access-key/],
    [refusal(403, 'SignatureDoesNotMatch'), 'WrongSecretKey', /does not belong to access key.*look at secret-key/],
    [refusal(400, 'ExpiredToken'), 'WrongSessionToken', /session token is not accepted any more/],
    [
      refusal(307, 'TemporaryRedirect', '<Endpoint>bucket.s3.eu-7.example.net</Endpoint>', { location: 'https://other/bucket' }),
      'WrongRegion',
      /say its region, or the endpoint that it has \(it sends us to endpoint: https:\/\/s3\.eu-7\.example\.net\)/,
    ],
    [
      { status: 308, headers: { location: 'https://s3.example.net/bucket?x' } },
      'WrongRegion',
      /it sends us to endpoint: https:\/\/s3\.example\.net\)/,
    ],
    [refusal(404, 'NoSuchBucket'), 'NoBucket', /there is no bucket 'bucket'; create it/],
    [refusal(400, 'AuthorizationHeaderMalformed', '<Region>eu-7</Region>'), 'WrongRegion', /but in 'eu-7': say region: eu-7/],
    [{ status: 301, headers: { 'x-amz-bucket-region': 'eu-8' } }, 'WrongRegion', /but in 'eu-8': say region: eu-8/],
    [refusal(307, 'TemporaryRedirect'), 'WrongRegion', /say its region, or the endpoint that it has/],
    [refusal(403, 'AccessDenied'), 'Denied', /may not list ''; docs\/s3.md has the policy/],
    [refusal(403, 'RequestTimeTooSkewed'), 'ClockSkew', /set the clock/],
    [
      { status: 200, headers: { 'content-type': 'text/html' }, body: '<html>hello</html>' },
      'NotS3',
      /is no S3 store \(it sends text\/html\)/,
    ],
    [{ status: 200, body: 'no XML' }, 'NotS3', /is no S3 store \(it sends what has no type\)/],
    [{ status: 404, body: '<html>not here</html>' }, 'IoError', /404 NotFound: <html>not here<\/html>; is endpoint right\?/],
    [refusal(507, 'InsufficientStorage'), 'NoSpace', /InsufficientStorage.*; make room there/],
    [refusal(403, 'Odd'), 'Denied', /403 Odd.*; look at access-key/],
    [refusal(503, 'SlowDown'), 'Unavailable', /503 SlowDown.*; it is busy, or not well: try again later/],
  ]
  for (const [answer, name, sentence] of mistakes) t.match(await openingSays(t, () => answer), { name, message: sentence }, name)
})

t.test('an endpoint where nobody is, or that is no store, is told apart', async t => {
  const [port] = await new Promise<number[]>(resolve => {
    const server = net.createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address() as net.AddressInfo
      server.close(() => resolve([port]))
    })
  })
  await t.rejects(open(`http://127.0.0.1:${port}`), { name: 'Unreachable', message: /nobody listens there/ })
  await t.rejects(open('http://no-such-host.invalid'), { name: 'Unreachable' })
  const talker = net.createServer(socket => {
    socket.on('error', error => t.comment(error.message))
    socket.end('220 mail.example.net ESMTP\r\n')
  })
  await new Promise<void>(resolve => talker.listen(0, '127.0.0.1', resolve))
  t.teardown(() => talker.close())
  const { port: mail } = talker.address() as net.AddressInfo
  await t.rejects(open(`http://127.0.0.1:${mail}`), { name: 'NotS3', message: /does not speak HTTP/ })
  const silentServer = net.createServer(socket => socket.on('error', error => t.comment(error.message)))
  await new Promise<void>(resolve => silentServer.listen(0, '127.0.0.1', resolve))
  t.teardown(() => silentServer.close())
  const { port: mute } = silentServer.address() as net.AddressInfo
  await t.rejects(open(`http://127.0.0.1:${mute}`), { name: 'Unreachable', message: /did not reply in time/ })
})

t.test('a wrong clock is noticed, told of once, and signed around', async t => {
  const store = await ScriptedS3.listen()
  t.teardown(() => store[Symbol.asyncDispose]())
  store.script = request =>
    Math.abs(signedAt(request) - Date.now()) > 900_000 ? refusal(403, 'RequestTimeTooSkewed') : undefined
  const lines: string[] = []
  const log = createLog('info', { write: line => void lines.push(line) })
  const hours = 3 * 3_600_000
  await using target = await S3Target.open(optionsFor(store.endpoint, 'bucket'), log, { now: () => Date.now() - hours })
  await target.put('x', Buffer.from('x'))
  t.equal(lines.length, 1)
  t.match(lines[0], /clock is 1(08|07)\d\d s behind that of/)
  // As stores say it that know no such code; and a clock that goes wrong while many requests are under way.
  for (const code of ['AccessDenied', 'SignatureDoesNotMatch', 'AuthorizationHeaderMalformed']) {
    let wrong = 0
    await using target = await S3Target.open(optionsFor(store.endpoint, 'bucket'), log, { now: () => Date.now() + wrong })
    wrong = hours
    let later = 0
    store.script = async request => {
      if (Math.abs(signedAt(request) - Date.now()) <= 900_000) return undefined
      await sleep(later++ * 20)
      return refusal(400, code)
    }
    await Promise.all(['x', 'y', 'z'].map(key => target.put(key, Buffer.from('x'))))
    t.equal(later, 3)
  }
  t.equal(lines.length, 4, 'each is told of once')
})

t.test('keys that were changed while we ran take effect when the old ones are refused', async t => {
  const store = await ScriptedS3.listen()
  t.teardown(() => store[Symbol.asyncDispose]())
  process.env['ROTATING_TOKEN'] = 'old'
  await using target = await openS3(store.endpoint, 'bucket', { 'session-token': 'env:ROTATING_TOKEN' })
  let later = 0
  store.script = async ({ headers }) => {
    if (headers['x-amz-security-token'] === 'new') return undefined
    await sleep(later++ * 20)
    return refusal(400, 'ExpiredToken')
  }
  await t.rejects(target.put('x', Buffer.from('x')), { name: 'WrongSessionToken' })
  process.env['ROTATING_TOKEN'] = 'new'
  await Promise.all(['x', 'y', 'z'].map(key => target.put(key, Buffer.from('x'))))
  t.equal(later, 4, 'those that were under way with the old ones, too')
  t.equal(String((await target.get('x')).body), 'x')
})

t.test('no more requests are under way than are allowed, and bytes keep within their limits', async t => {
  const { target, store } = await storeWith(t, {}, { connections: 2, 'upload-limit': '4M', 'download-limit': '8M' })
  const body = randomBytes(2_000_000, 1)
  const begun = performance.now()
  await Promise.all(['a', 'b'].map(key => target.put(key, body)))
  t.ok(performance.now() - begun > 600, '4 MB up')
  const again = performance.now()
  t.ok(Buffer.from((await target.get('a')).body).equals(body))
  await target.get('b')
  t.ok(performance.now() - again > 300, '4 MB down')
  t.equal(store.objects.size, 2)
})

t.test('a store that says what cannot be is not believed', async t => {
  const { target, store } = await storeWith(t)
  store.objects.set('x', { body: randomBytes(100, 1), tag: 'x', headers: {} })
  for (const [answer, sentence] of [
    [list(entry('b') + entry('a')), /does not keep the order/],
    [list('', true), /gives no keys/],
    [list(entry('a', '-1')), /cannot be/],
    [list(entry('a', '1e99')), /cannot be/],
    [list(entry('a', '1', 'yesterday')), /cannot be/],
    [{ status: 200, body: '<ListBucketResult>' }, /no S3 store/],
  ] as const) {
    store.script = () => answer
    await t.rejects(listed(target, ''), { message: sentence })
  }
  store.script = () => list(entry('a'), true)
  await t.rejects(listed(target, ''), { message: /does not keep the order/ }, 'nor for ever')
  store.script = () => ({ status: 206, headers: { 'content-range': 'bytes 50-59/100' }, body: 'y'.repeat(10) })
  await t.rejects(target.get('x', { range: { offset: 0, length: 10 } }), { name: 'NotS3' })
  store.script = () => ({ status: 200, body: 'y'.repeat(100) })
  await t.rejects(target.get('x', { range: { offset: 0, length: 10 } }), { message: /more than 10 bytes/ })
  store.script = () => ({ status: 200 })
  await t.rejects(target.put('x', Buffer.alloc(1)), { name: 'NotS3', message: /no ETag/ })
})
