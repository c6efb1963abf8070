// What every push target must do (src/repository/target.ts says it in words). For ours and for anybody's:
//     targetSuite(t, 'my store', async stack => stack.use(await plugin.open(options, context)))
// Each test works below a prefix of its own, so a shared place will do, and removes what it made.

import { createHash, randomUUID } from 'node:crypto'
import type { Test } from 'tap'
import { InvalidParameter, OutOfRange } from '../../src/base/errors.ts'
import { compareKeys, NotThere, PreconditionFailed, type Target } from '../../src/push/target.ts'
import { Unavailable } from '../../src/repository/target.ts'
import { randomBytes } from './random-bytes.ts'

/** Opens the target under test; each call may open it anew. What must be closed goes on the stack. */
export type MakeTarget = (stack: AsyncDisposableStack) => Promise<Target>

export interface TargetCapabilities {
  /** `false`: the store ignores or refuses ifAbsent and ifMatch; a repository on it has one writer. */
  readonly conditional?: boolean
  /** `true`: replies get lost on the way, so that whoever is refused may be told that nobody knows. */
  readonly forgetful?: boolean
  /** Bytes of the large object. */
  readonly large?: number
  /** How many objects the listing test makes: more than a page of the store, where that is bearable. */
  readonly many?: number
}

const ODD_PARTS = [
  'with space',
  'plus+and&ampersand=equals',
  'percent%20%2F%zz',
  'quotes"and\'apostrophe`',
  'Äöü-ß-日本語-🦊',
  '.hidden',
  '...',
  'a?b#c;d:e@f',
  'back\\slash|pipe*star',
  '(round)[square]{curly}<angle>!$,~^',
  '-dash',
  'CON',
  'UPPER',
  'upper',
  'é', // one character, and the same in two
  'e\u0301',
]

export function targetSuite(
  t: Test,
  name: string,
  make: MakeTarget,
  { conditional = true, forgetful = false, many = 60, large = 33 << 20 }: TargetCapabilities = {},
) {
  const withTarget = async (use: (target: Target, prefix: string, again: () => Promise<Target>) => Promise<void>) => {
    await using stack = new AsyncDisposableStack()
    const target = await make(stack)
    const prefix = `suite/${randomUUID()}/`
    try {
      await use(target, prefix, () => make(stack))
    } finally {
      await target.delete((await listed(target, prefix)).map(({ key }) => key))
    }
  }

  void t.test(`${name}: what was put is what one gets, from anywhere, until it is deleted`, async t => {
    await withTarget(async (target, prefix, again) => {
      const key = `${prefix}packs/ab/object`
      for (const size of [0, 1, 70_001]) {
        const body = randomBytes(size, size)
        const { tag } = await target.put(key, body)
        const other = await again()
        const found = await other.get(key)
        t.ok(Buffer.from(found.body).equals(body), `${size} bytes`)
        t.equal(found.tag, tag, 'with the tag that put gave')
        t.same(
          (await listed(other, prefix)).map(({ key, size }) => ({ key, size })),
          [{ key, size }],
        )
      }
      await (await again()).delete([key, `${prefix}never/was`])
      await t.rejects(target.get(key), NotThere)
      await t.rejects(target.get(key, { range: { offset: 0, length: 1 } }), NotThere)
      t.same(await listed(target, prefix), [])
      await target.delete([key])
      await target.delete([])
    })
  })

  void t.test(`${name}: a large body arrives whole, and any range of it`, async t => {
    await withTarget(async (target, prefix) => {
      const body = randomBytes(large + 77, 5)
      const key = `${prefix}large`
      await target.put(key, body, { sha256: createHash('sha256').update(body).digest('hex') })
      t.ok(Buffer.from((await target.get(key)).body).equals(body))
      for (const [offset, length] of [
        [0, 1],
        [body.length - 1, 1],
        [body.length - 10, 100],
        [1 << 20, large >> 3],
        [12_345, 1],
      ] as const) {
        const { body: part } = await target.get(key, { range: { offset, length } })
        t.ok(Buffer.from(part).equals(body.subarray(offset, offset + length)), `${offset}+${length}`)
        // Whether or not it goes where it may, and nothing behind that is touched.
        const memory = Buffer.from(new SharedArrayBuffer(length + 2)).fill(7)
        const { body: placed } = await target.get(key, { range: { offset, length }, into: memory.subarray(1, -1) })
        t.ok(Buffer.from(placed).equals(part), `${offset}+${length} into memory of the caller`)
        t.same([memory[0], memory.at(-1)], [7, 7])
      }
      await t.rejects(target.get(key, { range: { offset: body.length, length: 1 } }), OutOfRange)
    })
  })

  void t.test(`${name}: ranges of many requests at once do not mix`, async t => {
    await withTarget(async (target, prefix) => {
      const body = randomBytes(200_000, 9)
      const key = `${prefix}object`
      await target.put(key, body)
      const parts = Array.from({ length: 40 }, (_, index) => ({ offset: index * 4999, length: 4999 + index }))
      const found = await Promise.all(parts.map(range => target.get(key, { range })))
      t.ok(
        parts.every(({ offset, length }, index) =>
          Buffer.from(found[index]!.body).equals(body.subarray(offset, offset + length)),
        ),
      )
    })
  })

  void t.test(`${name}: keys with odd characters stay apart and come back as they were`, async t => {
    await withTarget(async (target, prefix) => {
      const keys = ODD_PARTS.flatMap(part => [`${prefix}${part}`, `${prefix}folder of ${part}/x${part}`])
      await Promise.all(keys.map(key => target.put(key, Buffer.from(key))))
      for (const key of keys) t.equal(Buffer.from((await target.get(key)).body).toString(), key)
      t.same(
        (await listed(target, prefix)).map(({ key }) => key),
        [...keys].sort(compareKeys),
      )
      await target.delete(keys)
      t.same(await listed(target, prefix), [])
    })
  })

  void t.test(`${name}: keys that no store could carry are refused everywhere`, async t => {
    await withTarget(async (target, prefix) => {
      const bad = [
        '',
        '/',
        'a//b',
        'a/',
        '/a',
        '.',
        '..',
        `${prefix}../x`,
        `${prefix}./x`,
        'a\0b',
        'a\nb',
        'x'.repeat(513),
        'a\ud800b',
      ]
      for (const key of bad) {
        await t.rejects(target.put(key, Buffer.alloc(1)), InvalidParameter, JSON.stringify(key))
        await t.rejects(target.get(key), InvalidParameter)
        await t.rejects(target.delete([key]), InvalidParameter)
      }
    })
  })

  void t.test(`${name}: a listing is complete and in order, for any prefix and from behind any key`, async t => {
    await withTarget(async (target, prefix) => {
      const keys = Array.from(
        { length: many },
        (_, index) => `${prefix}${['a/', 'a-', 'ab', 'b/c/', ''][index % 5]}${(index * 7919) % 10_007}`,
      )
      const waiting = [...keys]
      const put = async () => {
        for (let key = waiting.pop(); key; key = waiting.pop()) await target.put(key, Buffer.from('x'))
      }
      await Promise.all(Array.from({ length: 16 }, put))
      const sorted = [...keys].sort(compareKeys)
      for (const part of ['', 'a', 'a/', 'a-', 'b/c/', 'b/', 'nothing', 'a/1']) {
        const wanted = sorted.filter(key => key.startsWith(prefix + part))
        const found = (await listed(target, prefix + part)).map(({ key }) => key)
        t.same(found, wanted, `prefix '${part}'`)
        const after = wanted[Math.floor(wanted.length / 2)]
        if (after === undefined) continue
        const rest = await listed(target, prefix + part, after)
        t.same(
          rest.map(({ key }) => key),
          wanted.slice(wanted.indexOf(after) + 1),
          'from behind one in the middle',
        )
      }
      const ages = (await listed(target, prefix)).map(({ modified }) => Math.abs(modified.getTime() - Date.now()))
      t.ok(
        ages.every(age => age < 3_600_000),
        'with times',
      )
      for await (const { key } of target.list(prefix)) {
        t.equal(key, sorted[0], 'and one need not hear it to the end')
        break
      }
    })
  })

  void t.test(`${name}: a request that is called off at once does nothing`, async t => {
    await withTarget(async (target, prefix) => {
      const signal = AbortSignal.abort(new Error('called off'))
      await t.rejects(target.put(`${prefix}x`, Buffer.alloc(10), { signal }), { message: 'called off' })
      await t.rejects(target.get(`${prefix}x`, { signal }), { message: 'called off' })
      await t.rejects(target.delete([`${prefix}x`], { signal }), { message: 'called off' })
      await t.rejects(listed(target, prefix, undefined, signal), { message: 'called off' })
      t.same(await listed(target, prefix), [])
    })
  })

  void t.test(`${name}: a put that is called off midway leaves the whole object or none`, async t => {
    await withTarget(async (target, prefix) => {
      const body = randomBytes(8 << 20, 3)
      for (const delayMs of [0, 1, 3, 10, 30]) {
        const key = `${prefix}${delayMs}`
        const stop = new AbortController()
        setTimeout(() => stop.abort(new Error('called off')), delayMs)
        await target.put(key, body, { signal: stop.signal }).catch((error: unknown) => t.match(error, { message: 'called off' }))
        const found = await listed(target, key)
        t.ok(found.length === 0 || found[0]!.size === body.length, `after ${delayMs} ms`)
        if (found.length > 0) t.ok(Buffer.from((await target.get(key)).body).equals(body))
      }
    })
  })

  if (!conditional) return

  void t.test(`${name}: what must be absent is written once, whoever asks and however often`, async t => {
    await withTarget(async (target, prefix, again) => {
      const targets = [target, await again(), await again()]
      for (let round = 0; round < 4; round++) {
        const key = `${prefix}races/${round}`
        const bodies = Array.from({ length: 16 }, (_, index) => Buffer.from(`writer ${index} `.repeat(round * 3000 + 1)))
        const outcomes = await Promise.allSettled(
          bodies.map((body, index) => targets[index % targets.length]!.put(key, body, { ifAbsent: true })),
        )
        const won = outcomes.flatMap(({ status }, index) => (status === 'fulfilled' ? [index] : []))
        t.equal(won.length, 1, 'one of 16 wins')
        t.ok(outcomes.every(outcome => outcome.status === 'fulfilled' || outcome.reason instanceof PreconditionFailed))
        t.ok(Buffer.from((await target.get(key)).body).equals(bodies[won[0]!]!), 'and its body is there')
      }
    })
  })

  void t.test(`${name}: an object is replaced by whoever knows its tag, once`, async t => {
    await withTarget(async (target, prefix, again) => {
      const targets = [target, await again(), await again()]
      const key = `${prefix}state`
      await t.rejects(target.put(key, Buffer.alloc(1), { ifMatch: 'no such tag' }), PreconditionFailed, 'nothing to replace')
      await t.rejects(target.get(key), NotThere)
      let { tag } = await target.put(key, Buffer.from('first'), { ifAbsent: true })
      for (let round = 0; round < 5; round++) {
        const bodies = Array.from({ length: 9 }, (_, index) => Buffer.from(`round ${round} writer ${index}`))
        const outcomes = await Promise.allSettled(
          bodies.map((body, index) => targets[index % targets.length]!.put(key, body, { ifMatch: tag })),
        )
        const won = outcomes.flatMap(({ status }, index) => (status === 'fulfilled' ? [index] : []))
        t.equal(won.length, 1, 'one of 9 wins')
        t.ok(outcomes.every(outcome => outcome.status === 'fulfilled' || outcome.reason instanceof PreconditionFailed))
        const found = await target.get(key)
        t.ok(Buffer.from(found.body).equals(bodies[won[0]!]!))
        t.not(found.tag, tag)
        ;({ tag } = found)
      }
      await target.delete([key])
      const refused = await target.put(key, Buffer.alloc(1), { ifMatch: tag }).catch((error: unknown) => error)
      t.ok(
        refused instanceof PreconditionFailed || (forgetful && refused instanceof Unavailable),
        `nor what was deleted: ${String(refused)}`,
      )
      t.same(await listed(target, key), [])
    })
  })

  void t.test(`${name}: counters that many raise by compare-and-swap lose nothing`, async t => {
    await withTarget(async (target, prefix, again) => {
      const key = `${prefix}counter`
      await target.put(key, Buffer.from('0'))
      const raise = async (target: Target) => {
        for (let done = 0; done < 5;) {
          const { body, tag } = await target.get(key)
          try {
            await target.put(key, Buffer.from(String(Number(Buffer.from(body).toString()) + 1)), { ifMatch: tag })
            done++
          } catch (error) {
            if (!(error instanceof PreconditionFailed)) throw error
          }
        }
      }
      await Promise.all([raise(target), raise(await again()), raise(await again()), raise(target)])
      t.equal(Buffer.from((await target.get(key)).body).toString(), '20')
    })
  })

  void t.test(`${name}: both conditions at once are refused`, async t => {
    await withTarget(async (target, prefix) => {
      await t.rejects(target.put(`${prefix}x`, Buffer.alloc(1), { ifAbsent: true, ifMatch: 'x' }), InvalidParameter)
    })
  })
}

export async function listed(target: Target, prefix: string, after?: string, signal?: AbortSignal) {
  return Array.fromAsync(target.list(prefix, { ...(after !== undefined && { after }), signal }))
}
