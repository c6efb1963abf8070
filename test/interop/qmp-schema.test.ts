// What query-qmp-schema says of QEMU's own commands, held against what qemu-storage-daemon says of them.

import t from 'tap'
import { controlServer, RawClient } from '../helpers/control.ts'
import { qemuCommands } from '../helpers/qemu-commands.ts'
import { qsdMissing, startQsd } from '../helpers/qemu-storage-daemon.ts'
import { QmpSchema, type SchemaEntry } from '../helpers/qmp-schema.ts'

/** What QEMU has only since 8.0 (QEMU.md, 1.9): the installed one may be older. */
const LATER = new Set([
  'block-commit/backing-mask-protocol',
  'block-export-add/allow-inactive',
  'block-stream/backing-mask-protocol',
  'blockdev-add/active',
  'blockdev-add/+copy-before-write/min-cluster-size',
  'blockdev-add/+qcow2/discard-no-unref',
  'blockdev-reopen/options/[]/+copy-before-write/min-cluster-size',
  'blockdev-create/options/+qcow2/file/+copy-before-write/min-cluster-size',
  'blockdev-create/options/+qcow2/data-file/+copy-before-write/min-cluster-size',
  ...['blockdev-backup', 'drive-backup'].flatMap(name => [`${name}/discard-source`, `${name}/x-perf/min-cluster-size`]),
  'nbd-server-start/handshake-max-seconds',
  'query-block=/[]/inserted/active',
  'query-block-jobs=/[]/+mirror/actively-synced',
  'query-block-jobs=/[]/type is enum, not string',
  'query-named-block-nodes=/[]/active',
  ...['blockdev-backup', 'drive-backup'].flatMap(name => [
    `transaction/actions/[]/+${name}/data/discard-source`,
    `transaction/actions/[]/+${name}/data/x-perf/min-cluster-size`,
  ]),
])

/** What is our own on purpose. */
const OURS = new Set([
  ...['blockdev-add', 'blockdev-reopen/options/[]', 'blockdev-create/options/+qcow2/file'].flatMap(node => [
    ...['restore-point', 'quota', 'delay', 'inject-error'].flatMap(filter => [
      `${node}/driver/+${filter}`,
      `${node}/driver/${filter}`,
    ]),
    `${node}/+raw/bitmaps`,
  ]),
  ...['blockdev-mirror', 'blockdev-reopen', 'block-export-add', 'block-export-del'].flatMap(type => [
    `transaction/actions/[]/type/+${type}`,
    `transaction/actions/[]/type/${type}`,
  ]),
  'BLOCK_JOB_ERROR/reason', // QEMU's says only that something went wrong
  'blockdev-mirror/target-timeout', // with QEMU a guest waits for ever
  'drive-mirror/target-timeout',
])

async function schemaOf(path: string) {
  using client = await RawClient.ready(path)
  const { return: entries } = await client.ask('{"execute":"query-qmp-schema"}')
  return new QmpSchema(entries as SchemaEntry[])
}

t.test('of a command or event that QEMU has we say nothing that QEMU does not', { skip: qsdMissing }, async t => {
  await using stack = new AsyncDisposableStack()
  const { path } = await controlServer(stack, qemuCommands)
  const [ours, qemus] = [await schemaOf(path), await schemaOf(await startQsd(stack))]
  for (const kind of ['command', 'event'] as const) {
    const theirs = new Set(qemus.names(kind))
    const shared = ours.names(kind).filter(name => theirs.has(name))
    t.ok(shared.length >= 5)
    const beyond = shared.flatMap(name => ours.beyond(qemus, name)).filter(path => !LATER.has(path) && !OURS.has(path))
    t.same(beyond, [], kind)
  }
})

t.test('the comparison sees what is missing', { skip: qsdMissing }, async t => {
  await using stack = new AsyncDisposableStack()
  const { path } = await controlServer(stack, qemuCommands)
  const [ours, qemus] = [await schemaOf(path), await schemaOf(await startQsd(stack))]
  t.ok(new Set(qemus.beyond(ours, 'nbd-server-start')).has('nbd-server-start/addr/+unix/data/tight'))
  t.ok(new Set(qemus.beyond(ours, 'blockdev-add')).has('blockdev-add/+file/drop-cache'))
  t.ok(new Set(qemus.beyond(ours, 'blockdev-add')).has('blockdev-add/+qcow2/encrypt'))
})
