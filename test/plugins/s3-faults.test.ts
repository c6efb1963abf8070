// The S3 target over a network that misbehaves: Ceph's radosgw behind a proxy that resets connections, loses replies, delivers twice
// and lies. Nothing is lost, nothing is done twice, and nobody wins who has not.

import t, { type Test } from 'tap'
import { PreconditionFailed, Unavailable } from '../../src/push/target.ts'
import { Ceph, cephMissing } from '../helpers/ceph.ts'
import { FaultProxy, type Mishap, type Seen } from '../helpers/fault-proxy.ts'
import { liveOn } from '../helpers/live-repository.ts'
import { generator, randomBytes } from '../helpers/random-bytes.ts'
import { makeBucket, openS3 } from '../helpers/s3.ts'
import { seed } from '../helpers/seed.ts'
import { listed, targetSuite } from '../helpers/target-suite.ts'

if (cephMissing) {
  t.plan(0, cephMissing)
  process.exit()
}
const ceph = await Ceph.launch()
t.teardown(() => ceph[Symbol.asyncDispose]())
await makeBucket(ceph.endpoint, 'faults')

/** Of this many requests one goes wrong, in any way that may be. */
function misfortune(oneIn: number, next = generator(seed)) {
  return ({ method }: Seen): Mishap | undefined => {
    if (next() % oneIn !== 0) return undefined
    const changes = method !== 'GET' && method !== 'HEAD'
    const kinds: Mishap[] = [
      { kind: 'reply', status: 500 },
      { kind: 'reply', status: 503, headers: { 'retry-after': '0' }, body: '<Error><Code>SlowDown</Code></Error>' },
      { kind: 'reply', status: 502, body: '<html>Bad Gateway</html>' },
      { kind: 'reset', when: 'before' },
      { kind: 'reset', when: 'after' },
      { kind: 'lie', status: 500 },
      { kind: 'slow', ms: 30 },
      ...(changes ? [{ kind: 'duplicate' } as const, { kind: 'flip' } as const] : [{ kind: 'cut' } as const]),
    ]
    return kinds[next() % kinds.length]
  }
}

const proxy = await FaultProxy.before(ceph.port)
t.teardown(() => proxy[Symbol.asyncDispose]())
proxy.mishap = misfortune(6)
targetSuite(t, 's3 over a network that misbehaves', async stack => stack.use(await openS3(proxy.endpoint, 'faults')), {
  forgetful: true,
  large: 5 << 20,
})

t.test('and all of that did happen', async t => {
  t.ok(proxy.happened.size >= 6, JSON.stringify([...proxy.happened]))
  t.equal(proxy.happened.has('reset'), true)
})

/** A target whose next requests of this kind go wrong like that. */
async function behind(t: Test, mishaps: (Mishap | undefined)[], concerns: (request: Seen) => boolean) {
  const proxy = await FaultProxy.before(ceph.port)
  t.teardown(() => proxy[Symbol.asyncDispose]())
  const target = await openS3(proxy.endpoint, 'faults', { prefix: `t${Math.random()}` })
  t.teardown(() => target[Symbol.asyncDispose]())
  // What the store can do is known from here on.
  await target.put('known', Buffer.from('x'), { ifAbsent: true })
  proxy.seen.length = 0
  proxy.mishap = request => (concerns(request) ? mishaps.shift() : undefined)
  return { target, proxy, left: () => mishaps.length }
}

const isPut = ({ method }: Seen) => method === 'PUT'
const lost: readonly Mishap[] = [
  { kind: 'reset', when: 'after' },
  { kind: 'lie', status: 500 },
  { kind: 'lie', status: 503 },
  { kind: 'duplicate' },
]

t.test('a put whose reply was lost has been done, once, and is told as done', async t => {
  for (const mishap of lost) {
    const { target, proxy } = await behind(t, [mishap, mishap], isPut)
    const { tag } = await target.put('created', Buffer.from('one'), { ifAbsent: true })
    t.equal((await target.get('created')).tag, tag)
    const swapped = await target.put('created', Buffer.from('two'), { ifMatch: tag })
    const found = await target.get('created')
    t.equal(found.tag, swapped.tag, JSON.stringify(mishap))
    t.equal(String(found.body), 'two')
    t.ok(
      proxy.seen.some(({ method }) => method === 'HEAD'),
      'it was read back',
    )
  }
})

t.test('a put that was never done, and whose place somebody has taken, is told as lost', async t => {
  for (const mishap of [
    { kind: 'reset', when: 'before' },
    { kind: 'reply', status: 500 },
  ] as const) {
    const { target } = await behind(t, [undefined, mishap], isPut)
    const other = await openS3(ceph.endpoint, 'faults', { prefix: target.location.split('/').slice(4).join('/') })
    t.teardown(() => other[Symbol.asyncDispose]())
    await target.put('a', Buffer.from('one')) // passes
    const mine = await target.get('a')
    // While ours is on its way, and will be lost, others replace it twice, with what we want to write.
    const { tag } = await other.put('a', Buffer.from('two'), { ifMatch: mine.tag })
    await other.put('a', Buffer.from('three'), { ifMatch: tag })
    await t.rejects(target.put('a', Buffer.from('three'), { ifMatch: mine.tag }), PreconditionFailed, 'though the bytes are ours')
  }
})

t.test('a put that was done, whose reply was lost and that others have replaced since, is told as done', async t => {
  const { target, proxy } = await behind(t, [], isPut)
  const { tag } = await target.put('state', Buffer.from('0'), { ifAbsent: true })
  const other = await openS3(ceph.endpoint, 'faults', { prefix: target.location.split('/').slice(4).join('/') })
  t.teardown(() => other[Symbol.asyncDispose]())
  // The reply is held back until somebody else has gone on from what was written.
  let first = true
  proxy.mishap = request => {
    if (!isPut(request) || !first) return undefined
    first = false
    return { kind: 'reset', when: 'after' }
  }
  const goOn = (async () => {
    for (let found = await other.get('state'); ; found = await other.get('state'))
      if (String(found.body) === 'mine') return other.put('state', Buffer.from('theirs'), { ifMatch: found.tag })
  })()
  const [{ tag: told }] = await Promise.all([target.put('state', Buffer.from('mine'), { ifMatch: tag }), goOn])
  t.not(told, (await target.get('state')).tag, 'done, and not what is there now')
  await t.rejects(target.put('state', Buffer.from('again'), { ifMatch: told }), PreconditionFailed)
  t.equal(String((await other.get('state')).body), 'theirs')
})

t.test('a put that arrives once more, late, changes nothing where it had a condition', async t => {
  const { target, proxy } = await behind(
    t,
    [
      { kind: 'late duplicate', afterMs: 100 },
      { kind: 'late duplicate', afterMs: 100 },
    ],
    isPut,
  )
  const { tag } = await target.put('state', Buffer.from('one'), { ifAbsent: true })
  const { tag: second } = await target.put('state', Buffer.from('two'), { ifMatch: tag })
  await target.put('state', Buffer.from('three'), { ifMatch: second })
  await proxy.settled()
  t.equal(proxy.happened.get('late duplicate'), 2)
  t.equal(String((await target.get('state')).body), 'three')
})

t.test('a body that changes on the way is refused by the store and sent again', async t => {
  const { target, left } = await behind(t, [{ kind: 'flip' }, { kind: 'flip' }], isPut)
  const body = randomBytes(2_000_000, 1)
  await target.put('whole', body)
  t.equal(left(), 0)
  t.ok(Buffer.from((await target.get('whole')).body).equals(body))
  const wrong = target.put('whole', body, { sha256: 'a'.repeat(64) })
  await t.rejects(wrong, { name: 'IoError', message: /XAmzContentSHA256Mismatch/ }, 'and a wrong hash is not tried for ever')
})

t.test('a reply that stops midway is asked for again, also when it stops without an end', async t => {
  const proxy = await FaultProxy.before(ceph.port)
  t.teardown(() => proxy[Symbol.asyncDispose]())
  await using target = await openS3(proxy.endpoint, 'faults', { timeout: '1s' })
  const body = randomBytes(1_000_000, 2)
  await target.put('cut', body)
  const mishaps: Mishap[] = [{ kind: 'cut' }, { kind: 'cut', stall: true }, { kind: 'slow', ms: 100 }]
  proxy.mishap = () => mishaps.shift()
  t.ok(Buffer.from((await target.get('cut')).body).equals(body))
  t.ok(mishaps.length <= 1)
})

t.test('Retry-After is kept, and when the time for trying is up the last reason is told', async t => {
  const proxy = await FaultProxy.before(ceph.port)
  t.teardown(() => proxy[Symbol.asyncDispose]())
  await using target = await openS3(proxy.endpoint, 'faults', { retry: '1500ms' })
  const times: number[] = []
  let busy = 2
  proxy.mishap = () => {
    times.push(performance.now())
    return busy-- > 0 ? { kind: 'reply', status: 503, headers: { 'retry-after': '1' } } : undefined
  }
  await t.rejects(target.get('x'), { name: 'Unavailable', message: /could not read 'x': the store says 503 SlowDown/ })
  t.equal(times.length, 2, 'a second later, and not a third time')
  t.ok(times[1]! - times[0]! >= 990)
  busy = 0
  await using hasty = await openS3(proxy.endpoint, 'faults', { retry: '50ms' })
  busy = Infinity
  await t.rejects(listed(hasty, ''), Unavailable)
  await t.rejects(hasty.put('x', Buffer.alloc(1)), Unavailable)
  await t.rejects(hasty.delete(['x', 'y', 'z']), Unavailable)
  const stop = new AbortController()
  setTimeout(() => stop.abort(new Error('called off')), 200)
  await t.rejects(target.get('x', { signal: stop.signal }), { message: 'called off' }, 'who waits can be called off')
})

t.test('a repository lives on a network that misbehaves', async t => {
  const proxy = await FaultProxy.before(ceph.port)
  t.teardown(() => proxy[Symbol.asyncDispose]())
  await using target = await openS3(proxy.endpoint, 'faults', { prefix: 'repository' })
  proxy.mishap = misfortune(7)
  await liveOn(t, target, seed)
})
