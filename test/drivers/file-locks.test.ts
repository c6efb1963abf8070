// Locks on image files: what any users of one file may do together, and nothing more; and what is said where there are no locks.

import fc from '../helpers/property.ts'
import { open } from 'node:fs/promises'
import t from 'tap'
import { native } from '../../src/base/native.ts'
import type { PermissionChange } from '../../src/block/permissions.ts'
import { FileInUse, FileLocks } from '../../src/drivers/file-locks.ts'
import { scratchFile } from '../helpers/open-context.ts'
import { testGraph } from '../helpers/test-graph.ts'

const skip = !native && 'koffi does not load here'

const permissions = fc.record({ perm: fc.integer({ min: 0, max: 15 }), shared: fc.integer({ min: 0, max: 15 }) })
type Pair = typeof permissions extends fc.Arbitrary<infer T> ? T : never
const union = (a: Pair, b: Pair) => ({ perm: a.perm | b.perm, shared: a.shared & b.shared })
const fit = (a: Pair, b: Pair) => (a.perm & ~b.shared) === 0 && (b.perm & ~a.shared) === 0
/** Who asks for nothing more than it has is not refused, whatever others do. */
const asksMore = (before: Pair, next: Pair) => (next.perm & ~before.perm) !== 0 || (before.shared & ~next.shared) !== 0

t.test(
  'whoever opens a file is refused exactly what the others use or forbid, at every step of every change',
  { skip },
  async () => {
    await using stack = new AsyncDisposableStack()
    const filename = await scratchFile(Buffer.alloc(1), stack)
    const step = fc.tuple(fc.nat(2), permissions, fc.constantFrom('commit', 'abort', 'leave open'))
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 30 }), async steps => {
        await using files = new AsyncDisposableStack()
        const users: { locks: FileLocks; now: Pair; pending: Pair | undefined; change: PermissionChange | undefined }[] = []
        for (let user = 0; user < 3; user++) {
          const { fd } = files.use(await open(filename, 'r'))
          users.push({
            locks: new FileLocks(native!, fd, filename),
            now: { perm: 0, shared: 15 },
            pending: undefined,
            change: undefined,
          })
        }
        for (const [index, next, then] of steps) {
          const user = users[index]!
          const { now } = user
          user.change?.abort()
          user.change = user.pending = undefined
          // What is being changed counts before and after.
          const others = users.filter(one => one !== user).map(one => (one.pending ? union(one.now, one.pending) : one.now))
          const possible = !asksMore(now, next) || others.every(other => fit(next, other))
          try {
            const change = user.locks.prepare(next)
            if (!possible) return false
            if (then === 'leave open') Object.assign(user, { change, pending: next })
            else change[then]()
            if (then === 'commit') user.now = next
          } catch (error) {
            if (!(error instanceof FileInUse) || possible) throw error
          }
        }
        return true
      }),
      { numRuns: 200 },
    )
  },
)

t.test('two nodes of one process are kept apart as two processes are, and a view of one as it stands', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const filename = await scratchFile(Buffer.alloc(65536), stack)
  const { graph } = testGraph()
  stack.use(graph)
  const fileOf = (more: object) => ({ driver: 'raw', file: { driver: 'file', filename }, ...more })
  const node = await graph.add(fileOf({ 'node-name': 'one' }))
  const edge = graph.attach(node, { description: 'a test', perm: 3, shared: 1 })
  const second = await graph.add(fileOf({ 'node-name': 'two' }))
  t.throws(() => graph.attach(second, { description: 'a test', perm: 3, shared: 15 }), {
    name: 'FileInUse',
    message: `Failed to get "write" lock: the image '${filename}' is used by this process itself, under another node; stop that, or only read the image, with "force-share": true (-U), and know that it may change meanwhile`,
  })
  const reader = graph.attach(second, { description: 'a test', perm: 1, shared: 15 })
  await t.rejects(graph.add(fileOf({ 'node-name': 'three', 'force-share': true })), {
    message: 'force-share=on can only be used with read-only images',
  })
  await graph.detach(reader)
  graph.setPermissions(edge, { perm: 3, shared: 0 })
  t.throws(() => graph.attach(second, { description: 'a test', perm: 1, shared: 15 }), { name: 'FileInUse' })
  const forced = await graph.add(fileOf({ 'node-name': 'three', 'force-share': true, 'read-only': true }))
  t.throws(() => graph.attach(forced, { description: 'a test', perm: 1, shared: 15 }), { name: 'FileInUse' }, 'as QEMU')
  await graph.detach(edge)
  await graph.detach(graph.attach(second, { description: 'a test', perm: 3, shared: 0 }))
})
