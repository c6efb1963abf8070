// Checkpoints: what changed since each is known exactly, whatever is made and deleted, or is said to be unknown.

import { stat } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from '../helpers/property.ts'
import type { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { CheckpointInconsistent, InvalidParameter, IoError, NotFound } from '../../src/base/errors.ts'
import { createLog } from '../../src/base/log.ts'
import { ALL, Permission } from '../../src/block/permissions.ts'
import { bitmapName } from '../../src/machines/checkpoint-bitmaps.ts'
import { Checkpoints } from '../../src/machines/checkpoints.ts'
import type { Disk, Machine } from '../../src/machines/machine.ts'
import { Guest } from '../../src/machines/quiesce/guest.ts'
import { StateFolder } from '../../src/machines/state-folder.ts'
import { startAppliance } from '../helpers/appliance.ts'
import { stillpointInThread } from '../helpers/stillpoint.ts'
import { testGraph } from '../helpers/test-graph.ts'

const MIB = 1 << 20
const GRANULE = 65536
const SIZE = 20 * GRANULE + 100

/** A machine of two disks with a guest on each. */
async function room(stack: AsyncDisposableStack, folder: string) {
  const { graph } = testGraph()
  stack.use(graph)
  const state = stack.use(await StateFolder.open(folder))
  const disks: Disk[] = []
  for (const name of ['root', 'data'])
    disks.push({ name, node: await graph.add({ driver: 'memory', 'node-name': `db.${name}`, size: SIZE }) })
  const guests = disks.map(({ node }) => graph.attach(node, { description: 'a guest', perm: Permission.write, shared: ALL }))
  const guest = await Guest.open('db', { disks: {} }, state, createLog('warn'), () => {})
  const machine = { name: 'db', disks, guest, unsettled: [] } as unknown as Machine
  const write = (disk: number, granule: number) => guests[disk]!.write(granule * GRANULE, Buffer.alloc(10, 1))
  return { machine, graph, state, write, disks, open: () => Checkpoints.open(machine, graph, state) }
}

/** The granules of a disk that changed since. */
function changes(checkpoints: Checkpoints, name: string, disk: Disk) {
  const granules = new Set<number>()
  for (const bitmap of checkpoints.changesSince(name, disk) ?? []) {
    for (const { offset, length } of bitmap.dirtyRanges({ offset: 0, length: SIZE }))
      for (let at = offset; at < offset + length; at += GRANULE) granules.add(Math.floor(at / GRANULE))
  }
  return sorted(granules)
}

const sorted = (granules: Iterable<number>) => [...granules].sort((a, b) => a - b).join()

/** Undefined when it is said to be inconsistent. */
function changesIfKnown(checkpoints: Checkpoints, name: string, disk: Disk) {
  try {
    return changes(checkpoints, name, disk)
  } catch (error) {
    if (error instanceof CheckpointInconsistent) return undefined
    throw error
  }
}

t.test('whatever is written, made and deleted, what changed since each checkpoint is exactly what was written since', async t => {
  const act = fc.oneof(
    { weight: 5, arbitrary: fc.record({ kind: fc.constant('write' as const), disk: fc.nat(1), granule: fc.nat(20) }) },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant('create' as const) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('delete' as const), at: fc.nat(9), children: fc.boolean() }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('lose' as const), at: fc.nat(9), disk: fc.nat(1) }) },
  )
  const folder = t.testdir()
  let runs = 0
  await fc.assert(
    fc.asyncProperty(fc.array(act, { maxLength: 40 }), async acts => {
      await using stack = new AsyncDisposableStack()
      const { machine, write, disks, open } = await room(stack, `${folder}/${runs++}`)
      const checkpoints = await open()
      /** Per checkpoint and disk, what was written since it; undefined where a bitmap was lost. */
      const model: { name: string; since: (Set<number> | undefined)[] }[] = []
      for (const [step, act] of acts.entries()) {
        if (act.kind === 'write') {
          await write(act.disk, act.granule)
          for (const { since } of model) since[act.disk]?.add(act.granule)
        } else if (act.kind === 'create') {
          await checkpoints.create({ name: `c${step}` })
          model.push({ name: `c${step}`, since: [new Set(), new Set()] })
        } else if (model.length > 0 && act.kind === 'delete') {
          const at = act.at % model.length
          const deleted = await checkpoints.delete(model[at]!.name, { children: act.children })
          const gone = model.splice(at, act.children ? model.length : 1)
          if (deleted.join() !== gone.map(({ name }) => name).join()) throw new Error(`deleted ${deleted.join()}`)
        } else if (model.length > 0 && act.kind === 'lose') {
          // Somebody takes a bitmap away behind our back: all that rests on it is unknown from now on.
          const at = act.at % model.length
          const { bitmaps } = disks[act.disk]!.node
          const lost = bitmaps.find(bitmapName(model[at]!.name))
          if (lost) bitmaps.remove(lost)
          for (const { since } of model.slice(0, at + 1)) since[act.disk] = undefined
        }
        for (const { name, since } of model) {
          for (const [index, disk] of disks.entries()) {
            const found = changesIfKnown(checkpoints, name, disk)
            const right = since[index] && sorted(since[index])
            if (found !== right) throw new Error(`since ${name} on ${disk.name}: ${found}, and not ${right}`)
          }
        }
        for (const { node } of machine.disks) {
          const recording = [...node.bitmaps].filter(bitmap => bitmap.recording).length
          if (recording > 1) throw new Error(`a write marks ${recording} bitmaps`)
        }
      }
    }),
    { numRuns: 60 },
  )
})

t.test('a checkpoint is known after a restart, and that its bitmap is not', async t => {
  const folder = t.testdir()
  {
    await using stack = new AsyncDisposableStack()
    const checkpoints = await (await room(stack, folder)).open()
    await checkpoints.create({ name: 'one', description: 'before the upgrade' })
    await checkpoints.create({ name: 'two' })
    t.equal(checkpoints.problemOf('one'), undefined)
  }
  await using stack = new AsyncDisposableStack()
  const { open, write } = await room(stack, folder)
  const checkpoints = await open()
  t.match(checkpoints.list, [
    { name: 'one', description: 'before the upgrade', disks: ['root', 'data'], consistency: 'crash' },
    { name: 'two', parent: 'one' },
  ])
  t.match(checkpoints.problemOf('one'), /^checkpoint inconsistent: missing or broken bitmap checkpoint-one for disk root/)
  t.throws(() => checkpoints.changedBytes('two'), { name: 'CheckpointInconsistent', exitCode: 20 })
  await checkpoints.create({ name: 'three' })
  await write(0, 1)
  t.equal(checkpoints.changedBytes('three'), GRANULE)
  await checkpoints.delete('two')
  t.match(checkpoints.problemOf('one'), /inconsistent/, 'what is deleted after it does not make it whole')
})

t.test('names that cannot be, are taken or are unknown are refused, and nothing has changed', async t => {
  await using stack = new AsyncDisposableStack()
  const { open, disks } = await room(stack, t.testdir())
  const checkpoints = await open()
  await checkpoints.create({ name: 'one' })
  for (const name of ['', '-x', 'a/b', 'a b', 'x'.repeat(129)]) await t.rejects(checkpoints.create({ name }), InvalidParameter)
  await t.rejects(checkpoints.create({ name: 'one' }), /has a checkpoint 'one' already/)
  await t.rejects(checkpoints.delete('nope'), NotFound)
  disks[1]!.node.bitmaps.add({ name: 'checkpoint-two' })
  await t.rejects(checkpoints.create({ name: 'two' }), { message: 'Bitmap already exists: checkpoint-two' })
  t.same(
    checkpoints.list.map(({ name }) => name),
    ['one'],
  )
  t.equal(disks[0]!.node.bitmaps.find('checkpoint-two'), undefined, 'all disks or none')
  t.ok(disks[0]!.node.bitmaps.get('checkpoint-one').recording)
})

t.test('a checkpoint that cannot be written down is none', async t => {
  await using stack = new AsyncDisposableStack()
  const { open, disks, state } = await room(stack, t.testdir())
  const checkpoints = await open()
  await checkpoints.create({ name: 'one' })
  state.write = () => Promise.reject(new InvalidParameter('the disk is full'))
  await t.rejects(checkpoints.create({ name: 'two' }), /full/)
  t.same(
    checkpoints.list.map(({ name }) => name),
    ['one'],
  )
  t.same(
    [...disks[0]!.node.bitmaps].map(({ name, recording }) => ({ name, recording })),
    [{ name: 'checkpoint-one', recording: true }],
  )
})

t.test('a checkpoint that a disk did not store in time is none, and the next one finds what was left of it', async t => {
  await using stack = new AsyncDisposableStack()
  const { open, disks, graph, write } = await room(stack, t.testdir())
  const checkpoints = await open()
  await checkpoints.create({ name: 'one' })
  await write(0, 3)
  const drained = graph.drained.bind(graph)
  let calls = 0
  graph.drained = async (nodes, moment) => {
    // It is made, and cannot be taken away again.
    if (++calls === 1) await drained(nodes, moment)
    throw new IoError('the disk has not answered')
  }
  await t.rejects(checkpoints.create({ name: 'two' }), { name: 'SuppressedError' })
  await write(0, 4)
  await t.rejects(checkpoints.create({ name: 'two' }), { message: /not answered/ }, 'as long as it does not answer')
  t.equal(changesIfKnown(checkpoints, 'one', disks[0]!), undefined)
  graph.drained = drained
  await write(0, 5)
  await checkpoints.create({ name: 'two' })
  t.same(
    checkpoints.list.map(({ name }) => name),
    ['one', 'two'],
  )
  await write(0, 6)
  t.equal(changes(checkpoints, 'one', disks[0]!), '3,4,5,6')
  t.equal(changes(checkpoints, 'two', disks[0]!), '6')
})

t.test('with metadata only a checkpoint is forgotten, and its bitmaps stay', async t => {
  await using stack = new AsyncDisposableStack()
  const { open, disks } = await room(stack, t.testdir())
  const checkpoints = await open()
  await checkpoints.create({ name: 'one' })
  await checkpoints.delete('one', { metadataOnly: true })
  t.same(checkpoints.list, [])
  t.ok(disks[0]!.node.bitmaps.find('checkpoint-one'))
})

t.test('a disk that a checkpoint does not know counts as changed as a whole', async t => {
  await using stack = new AsyncDisposableStack()
  const { open, disks, graph, write } = await room(stack, t.testdir())
  const checkpoints = await open()
  await checkpoints.create({ name: 'one' })
  await write(0, 3)
  disks.push({ name: 'new', node: await graph.add({ driver: 'memory', 'node-name': 'db.new', size: 12_345 }) })
  t.equal(checkpoints.changesSince('one', disks[2]!), undefined)
  t.equal(checkpoints.changedBytes('one'), GRANULE + 12_345)
  await checkpoints.create({ name: 'two' })
  await checkpoints.delete('two')
  t.equal(checkpoints.changedBytes('one'), GRANULE + 12_345)
})

t.test('a second daemon is kept out of the state folder, and a damaged file is not guessed at', async t => {
  const folder = t.testdir({ 'checkpoints-db.json': '{"version":1,"checkpoints":[{"name":"x"}]}' })
  await using stack = new AsyncDisposableStack()
  const { open } = await room(stack, folder)
  await t.rejects(open(), /is damaged; move it away/)
  await t.rejects(StateFolder.open(folder), { name: 'Busy', exitCode: 11, message: /another daemon runs on the state folder/ })
})

/** Each number goes to one disk after the other, each when the one before has it: at any one instant no disk is ahead of those before it. */
t.test('of sixteen disks that are written one after the other, each backup is of one instant', async t => {
  await using stack = new AsyncDisposableStack()
  const size = 65536
  const names = Array.from({ length: 16 }, (_, index) => `d${index}`)
  const daemon = await startAppliance(stack, { disks: Object.fromEntries(names.map(name => [name, Buffer.alloc(size)])) })
  const guests = await Promise.all(names.map(name => daemon.nbd(`db/${name}`)))
  let writing = true
  let count = 0
  const inOrder = async () => {
    const data = Buffer.alloc(512)
    while (writing) {
      data.writeUInt32BE(++count)
      for (const guest of guests) await guest.write(0, data)
      await sleep(1)
    }
  }
  const beside = async (guest: NbdClient) => {
    for (const data = Buffer.alloc(4096, 'beside'); writing; await sleep(2)) await guest.write(8192, data)
  }
  const writers = [inOrder(), ...guests.slice(0, 4).map(beside)]
  let earlier = 0
  for (let round = 1; round <= 3; round++) {
    const name = `s${round}`
    while (count <= earlier + 1) await sleep(1)
    await daemon.execute('backup-begin', { machine: 'db', mode: 'pull', name, checkpoint: `c${round}` })
    const found: number[] = []
    for (const disk of names) {
      const view = await daemon.nbd(`${name}/${disk}`)
      found.push((await view.read(0, 512)).readUInt32BE())
      await view.close()
    }
    await daemon.execute('backup-finish', { name })
    t.same(
      found,
      found.toSorted((one, other) => other - one),
      'none is ahead of one before it',
    )
    t.ok(found[0]! - found.at(-1)! <= 1, `${found[0]} and ${found.at(-1)}`)
    t.ok(found.at(-1)! >= earlier)
    earlier = found[0]!
  }
  writing = false
  await Promise.all(writers)
})

t.test(
  'a disk grows and shrinks while a guest writes: who is connected keeps the size it has, and all that it grew by has changed',
  async t => {
    await using stack = new AsyncDisposableStack()
    const appliance = await startAppliance(stack, { disks: { root: Buffer.alloc(MIB, 1) } })
    await appliance.execute('checkpoint-create', { machine: 'db', name: 'one' })
    const guest = await appliance.nbd('db/root')
    const going = { on: true, writes: 0 }
    const writing = (async () => {
      for (; going.on; going.writes++) await guest.write((going.writes % 128) * 4096, Buffer.alloc(4096, 2))
    })()
    // So many that the connection is lent to a thread, between any two changes.
    const wrote = async (more: number) => {
      for (const until = going.writes + more; going.writes < until;) await new Promise(resolve => setTimeout(resolve, 1))
    }
    const resize = (args: readonly string[]) =>
      stillpointInThread(['disk', 'resize', 'db/root', ...args], { STILLPOINT_SOCKET: `${appliance.folder}/control.sock` })
    await wrote(300)
    t.match(await resize(['+3M']), { code: 0, stdout: /^db\/root has 4194304 bytes now;/ })
    await wrote(300)
    t.equal(guest.size, MIB)
    await t.rejects(guest.write(MIB, Buffer.alloc(1)), { code: 'EINVAL' })
    const other = await appliance.nbd('db/root')
    t.equal(other.size, 4 * MIB)
    await other.write(3 * MIB, Buffer.from('new'))
    t.match(await resize(['2M']), { code: 2, stderr: /say --shrink/ })
    t.match(await resize(['2M', '--shrink', '--json']), { code: 0, stdout: '{"disk":"db/root","size":2097152}\n' })
    await wrote(300)
    await t.rejects(other.write(3 * MIB, Buffer.alloc(1)), { code: /ENOSPC|EINVAL/ }, 'it is told, and nothing grows by it')
    await t.rejects(other.read(3 * MIB, 1), { code: /EINVAL|EIO/ })
    t.equal((await stat(appliance.image('root'))).size, 2 * MIB)
    going.on = false
    await writing
    await appliance.execute('backup-begin', { machine: 'db', mode: 'pull', name: 's', since: 'one' })
    const view = await appliance.nbd('s/root', { contexts: ['qemu:dirty-bitmap:backup-root'] })
    const dirty = (await Array.fromAsync(view.extents())).filter(({ status }) => status['qemu:dirty-bitmap:backup-root'] === 1)
    t.same(
      dirty.map(({ offset, length }) => [offset, length]),
      [
        [0, MIB / 2],
        [MIB, MIB],
      ],
    )
    t.match(await resize(['+1M']), { code: 1, stderr: /Permission conflict|in use/ }, 'not while a backup is open')
  },
)
