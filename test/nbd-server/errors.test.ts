// What a client is told when the disk fails: for every command and every error, with text where there is room for it.

import { constants } from 'node:os'
import { Command, CommandFlag, nbdErrors, Option } from 'nbd-client-ts/protocol'
import t from 'tap'
import { nbdErrorOf } from '../../src/base/errors.ts'
import { baseAllocation } from '../../src/nbd-server/context.ts'
import { injectError } from '../../src/filters/inject-error.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import { converse, flags, go, option, queries, request } from '../helpers/nbd-wire.ts'
import { openContext } from '../helpers/open-context.ts'
import { exportOf, quiet, serve } from '../helpers/served.ts'

const SIZE = 3 << 20
const modes = ['simple', 'structured'] as const
const way = (mode: (typeof modes)[number]) =>
  mode === 'simple'
    ? Buffer.concat([flags(3), go(mode)])
    : Buffer.concat([
        flags(3),
        option(Option.STRUCTURED_REPLY),
        option(Option.SET_META_CONTEXT, queries(mode, 'base:allocation')),
        go(mode),
      ])

const injected = ['EPERM', 'EIO', 'ENOMEM', 'EINVAL', 'ENOSPC', 'ENOTSUP', 'ESHUTDOWN'] as const
type Injected = (typeof injected)[number]
const same = Object.fromEntries(injected.map(name => [name, name])) as Record<Injected, string>
/** Nothing runs out of space by reading, and ENOTSUP is for fast zeroes alone. */
const reading = { ...same, ENOSPC: 'EIO', ENOTSUP: 'EINVAL' }
const writing = { ...same, ENOTSUP: 'EINVAL' }

const commands = [
  { name: 'READ', on: 'read', told: reading, request: { type: Command.READ, offset: 5, length: 10 } },
  {
    name: 'a READ of many pieces',
    on: 'read',
    told: reading,
    request: { type: Command.READ, length: SIZE },
    structuredOnly: true,
  },
  { name: 'CACHE', on: 'read', told: reading, request: { type: Command.CACHE, offset: 5, length: 10 } },
  { name: 'WRITE', on: 'write', told: writing, request: { type: Command.WRITE, payload: Buffer.alloc(10) } },
  { name: 'TRIM', on: 'discard', told: writing, request: { type: Command.TRIM, length: 10 } },
  { name: 'TRIM with FUA', on: 'flush', told: writing, request: { type: Command.TRIM, flags: CommandFlag.FUA, length: 10 } },
  { name: 'WRITE_ZEROES', on: 'zero', told: writing, request: { type: Command.WRITE_ZEROES, length: 10 } },
  {
    name: 'fast WRITE_ZEROES',
    on: 'zero',
    told: same,
    request: { type: Command.WRITE_ZEROES, flags: CommandFlag.FAST_ZERO, length: 10 },
  },
  { name: 'FLUSH', on: 'flush', told: writing, request: { type: Command.FLUSH } },
  {
    name: 'BLOCK_STATUS',
    on: 'extents',
    told: reading,
    request: { type: Command.BLOCK_STATUS, length: 10 },
    structuredOnly: true,
  },
] as const

t.test('every failing command is told by an error that is allowed for it, and the next one is served', async t => {
  for (const { name, on, told, request: failing, ...rest } of commands) {
    for (const errno of injected) {
      await using stack = new AsyncDisposableStack()
      const below = new MemoryNode(Buffer.alloc(SIZE))
      const options = injectError.options.parse({ rules: [{ on, errno, times: 1 }] })
      const context = openContext({ children: { file: below }, nodeName: 'n0' })
      const nodes = await Promise.all(modes.map(() => injectError.open(options, context)))
      const exported = modes.map((mode, index) =>
        exportOf(nodes[index]!, { name: mode, contexts: [baseAllocation(nodes[index]!)] }),
      )
      const served = await serve(exported, stack)
      for (const mode of modes) {
        if (mode === 'simple' && 'structuredOnly' in rest) continue
        const next = request({ type: Command.WRITE, cookie: 2n, offset: 100, payload: Buffer.alloc(1) })
        const reader = await converse(
          served.socket,
          way(mode),
          request({ ...failing, cookie: 1n }),
          ...(on === 'write' ? [] : [next]),
        )
        reader.greeting()
        reader.optionAnswers()
        const answers = reader.answers()
        const [failure] = answers.filter(({ cookie }) => cookie === 1n).slice(-1)
        t.equal(failure?.error, told[errno], `${mode} ${name} with ${errno}`)
        const type = on === 'read' ? 'ERROR_OFFSET' : 'ERROR'
        if (mode === 'structured') t.match(failure, { text: /^n0 \(inject-error\): /, done: true, type })
        if (on !== 'write')
          t.match(
            answers.find(({ cookie }) => cookie === 2n),
            { error: undefined },
            'and then goes on',
          )
      }
      await quiet(served)
      t.same(served.lines, [])
    }
  }
})

t.test('of all that a system says only eight errors travel, each the nearest', async t => {
  const numbers = Object.keys(constants.errno).map(code => nbdErrors[nbdErrorOf(Object.assign(new Error(code), { code }))])
  const allowed = new Set([1, 5, 12, 22, 28, 75, 95, 108])
  t.ok(numbers.length > 50 && numbers.every(number => allowed.has(number)))
  const nearest = { EROFS: 'EPERM', EACCES: 'EPERM', EDQUOT: 'ENOSPC', EFBIG: 'ENOSPC', EOPNOTSUPP: 'ENOTSUP', ENXIO: 'EIO' }
  for (const [code, told] of Object.entries(nearest)) t.equal(nbdErrorOf(Object.assign(new Error(code), { code })), told)
})

t.test('a bug is told as EIO without its details, which are in the log', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(Buffer.alloc(100))
  node.pause = async () => {
    throw new TypeError('secret is not a function')
  }
  const served = await serve([exportOf(node, { name: 'structured' })], stack)
  const reader = await converse(served.socket, way('structured'), request({ type: Command.WRITE, payload: Buffer.alloc(1) }))
  reader.greeting()
  reader.optionAnswers()
  t.match(reader.answers(), [{ error: 'EIO', text: /^internal error/ }])
  t.match(served.lines.join(''), /WRITE.*nobody foresaw.*secret is not a function[^]*at /)
})
