// Requests that hardly anybody makes: snapshots that are wrong together, jobs on filters and on images that are read-only, and what may not
// change when a node is opened in another way.

import {
  bitmap,
  content,
  event,
  exportDisk,
  guest,
  job,
  map,
  open,
  qmp,
  startServer,
  transaction,
  type Scenario,
} from '../../helpers/scenario.ts'

const SIZE = '1M'
const add = (args: object) => qmp('blockdev-add', args)
const del = (name: string) => qmp('blockdev-del', { 'node-name': name })
const file = (name: string) => ({ driver: 'file', filename: `$D/${name}` })
const overlay = (name: string, image: string, more: object = {}) =>
  add({ driver: 'qcow2', 'node-name': name, file: file(image), backing: null, ...more })
const nodes = qmp(
  'query-named-block-nodes',
  { flat: true },
  { ignoring: ['virtual-size', 'file', 'filename', 'backing_file', 'backing-filename', 'full-backing-filename'] },
)
const qcow2 = { size: SIZE, format: 'qcow2' } as const
const chain = {
  'base.qcow2': { ...qcow2, seed: 6 },
  'mid.qcow2': { ...qcow2, backing: 'base.qcow2' },
  'top.qcow2': { ...qcow2, backing: 'mid.qcow2' },
} as const
const openChain = add({
  driver: 'qcow2',
  'node-name': 'top',
  file: file('top.qcow2'),
  backing: {
    driver: 'qcow2',
    'node-name': 'mid',
    file: file('mid.qcow2'),
    backing: { driver: 'qcow2', 'node-name': 'base', file: file('base.qcow2') },
  },
})
const throttle = (name: string, below: string) => [
  qmp('object-add', { 'qom-type': 'throttle-group', id: `${name}-group` }),
  add({ driver: 'throttle', 'node-name': name, 'throttle-group': `${name}-group`, file: below }),
]
const snapshot = (node: string, over: string): [string, object] => ['blockdev-snapshot', { node, overlay: over }]
const sync = (more: object) => qmp('blockdev-snapshot-sync', { 'node-name': 'disk', ...more })
const backup = (more: object = {}) =>
  qmp('blockdev-backup', { 'job-id': 'j', device: 'disk', target: 'target', sync: 'full', ...more })
const over = [event('BLOCK_JOB_COMPLETED', {}, { ignoring: ['len', 'offset'] }), job('j', 'null')]
const stream = (more: object) => qmp('block-stream', { 'job-id': 'j', device: 'thr', ...more })
const reopen = (...options: object[]) => qmp('blockdev-reopen', { options })

const alone = {
  ours: { error: { desc: "Node 'disk' is busy: block device is in use by block job: backup" } },
  because: 'nothing else begins on a disk while a job of it waits for its end; QEMU lets a snapshot',
}
const ofItsJob = {
  ours: { error: { desc: /'write' are both required by block export 't'.* and unshared by backup job 'j'/s } },
  because: 'what a backup is written to is written by nobody else; QEMU lets guests',
}

const byItsName = {
  ours: { error: { desc: /^Invalid job ID/ } },
  because:
    'an image is found by the name that the one above has for it; QEMU finds none of a chain that was put together from nodes',
}
const downTo = {
  ours: { error: { desc: /^Invalid job ID/ } },
  because: 'a stream down to an image takes the name of its backing file; QEMU takes that for the stream of an entire chain',
}
const allocatedZeroes = {
  ours: { stdout: { 0: { length: 65536, type: 2 } } },
  because: 'a cluster that is allocated and reads as zeroes is zero, and no hole',
}

export const oddRequests: readonly Scenario[] = [
  {
    title: 'snapshots that do not go together, or would leave a guest where it cannot write',
    images: { 'disk.raw': { size: SIZE, seed: 4 }, 'over.qcow2': qcow2, 'more.qcow2': qcow2, 'target.raw': { size: SIZE } },
    steps: [
      open('disk', 'disk.raw'),
      open('target', 'target.raw'),
      startServer,
      exportDisk('disk'),
      overlay('ro', 'over.qcow2', { 'read-only': true }),
      qmp(...snapshot('disk', 'ro')),
      del('ro'),
      overlay('over', 'over.qcow2'),
      overlay('more', 'more.qcow2'),
      qmp('block-dirty-bitmap-add', { node: 'disk', name: 'b' }),
      qmp('block-dirty-bitmap-add', { node: 'over', name: 'x'.repeat(1024), persistent: true }),
      guest('disk', 'write -P 1 512k 64k'),
      transaction([snapshot('disk', 'over'), snapshot('disk', 'over')]),
      transaction([snapshot('disk', 'over'), snapshot('disk', 'more')]),
      transaction([snapshot('disk', 'over'), snapshot('more', 'over')]),
      transaction([snapshot('more', 'over'), snapshot('disk', 'over')]),
      transaction([snapshot('over', 'more'), snapshot('more', 'over')]),
      transaction([
        snapshot('disk', 'over'),
        snapshot('over', 'more'),
        ['block-dirty-bitmap-add', { node: 'more', name: 'c' }],
        ['block-dirty-bitmap-clear', { node: 'disk', name: 'b' }],
        ['abort'],
      ]),
      transaction([
        ['block-dirty-bitmap-clear', { node: 'disk', name: 'b' }],
        ['blockdev-snapshot-internal-sync', { device: 'disk', name: 'x' }],
      ]),
      bitmap('disk', 'b'),
      nodes,
      sync({ 'snapshot-file': '$D/over.qcow2', mode: 'existing', format: 'raw', 'snapshot-node-name': 'x' }),
      sync({ 'snapshot-file': '$D/none.qcow2', mode: 'existing', 'snapshot-node-name': 'x' }),
      sync({ 'snapshot-file': '$D/disk.raw', 'snapshot-node-name': 'x' }),
      sync({ 'snapshot-file': '$D/x.qcow2', 'snapshot-node-name': '1' }),
      sync({ 'snapshot-file': '$D/x.qcow2', 'snapshot-node-name': 'y'.repeat(32) }),
      transaction([snapshot('disk', 'over'), snapshot('over', 'more')]),
      guest('disk', 'write -P 2 0 64k'),
      nodes,
      content('disk'),
    ],
  },
  {
    title: 'jobs on filters, on images that are read-only, and by names that are taken',
    images: { ...chain, 'disk.raw': { size: SIZE, seed: 4 }, 'target.raw': { size: SIZE }, 'over.qcow2': qcow2 },
    steps: [
      open('disk', 'disk.raw'),
      open('target', 'target.raw'),
      openChain,
      ...throttle('thr', 'disk'),
      startServer,
      exportDisk('thr'),
      ...['disk', '', 'x'.repeat(32)].flatMap(name => [
        backup({ 'filter-node-name': name }),
        qmp('block-stream', { 'job-id': 'j', device: 'top', 'filter-node-name': name }),
      ]),
      qmp('blockdev-mirror', { 'job-id': 'j', device: 'thr', target: 'disk', sync: 'full' }),
      backup({ device: 'base' }),
      ...over,
      exportDisk('target', { id: 't', name: 't', writable: false }),
      content('t'),
      qmp('block-export-del', { id: 't' }),
      qmp('block-dirty-bitmap-add', { node: 'thr', name: 't' }),
      guest('thr', 'write -P 3 512k 64k'),
      backup({ device: 'thr', sync: 'incremental', bitmap: 't', 'auto-finalize': false }),
      event('BLOCK_JOB_PENDING'),
      qmp('job-cancel', { id: 'j' }),
      job('j', 'null'),
      bitmap('thr', 't'),
      overlay('over', 'over.qcow2'),
      qmp(...snapshot('thr', 'over')),
      nodes,
      guest('thr', 'write -P 4 0 64k'),
      content('thr'),
    ],
  },
  {
    title: 'a backup is written to an image that guests write to',
    images: { 'disk.raw': { size: SIZE, seed: 4 }, 'target.raw': { size: SIZE, scratch: true } },
    steps: [
      open('disk', 'disk.raw'),
      open('target', 'target.raw'),
      startServer,
      exportDisk('target', { id: 't', name: 't' }),
      { ...backup({ 'auto-finalize': false }), differs: ofItsJob },
      qmp('job-cancel', { id: 'j' }, { differs: { ours: { error: { desc: 'Job not found' } }, because: ofItsJob.because } }),
      qmp('block-export-del', { id: 't' }),
    ],
    rest: { ours: [{ event: 'BLOCK_EXPORT_DELETED' }], because: ofItsJob.because },
  },
  {
    title: 'a snapshot while a job waits for its end',
    images: { 'disk.raw': { size: SIZE, seed: 4 }, 'target.raw': { size: SIZE }, 'over.qcow2': qcow2 },
    steps: [
      open('disk', 'disk.raw'),
      open('target', 'target.raw'),
      overlay('over', 'over.qcow2'),
      backup({ 'auto-finalize': false }),
      event('BLOCK_JOB_PENDING'),
      { ...qmp(...snapshot('disk', 'over')), differs: alone },
      qmp('job-finalize', { id: 'j' }),
      ...over,
    ],
  },
  {
    title: 'streams and commits through a filter',
    images: chain,
    steps: [
      openChain,
      ...throttle('thr', 'top'),
      startServer,
      exportDisk('thr'),
      guest('thr', 'write -P 1 512k 128k'),
      ...['thr', 'top'].map(name => stream({ 'base-node': name })),
      stream({ base: 'nope' }),
      // With an id that is none, so that there is no job: that is looked at last.
      { ...stream({ base: 'base.qcow2', 'job-id': '1j' }), differs: byItsName },
      { ...stream({ device: 'top', bottom: 'mid', 'backing-file': 'base.qcow2', 'job-id': '1j' }), differs: downTo },
      guest('thr', 'write -P 1 0 64k', 'write -z 0 64k'),
      map('thr', 'base:allocation', { differs: allocatedZeroes }),
      guest('thr', 'write -P 1 0 64k'),
      stream({ device: 'top', 'base-node': 'thr' }),
      stream({ device: 'top', bottom: 'thr' }),
      qmp('block-commit', { 'job-id': 'j', device: 'top', 'top-node': 'thr', 'base-node': 'base' }),
      qmp('block-commit', { 'job-id': 'j', device: 'thr', 'top-node': 'mid', 'base-node': 'base' }),
      ...over,
      map('thr'),
      content('thr'),
      nodes,
    ],
  },
  {
    title: 'what may not change when a node is opened in another way',
    images: { 'disk.raw': { size: SIZE, seed: 4 }, 'top.qcow2': { ...qcow2, backing: 'disk.raw' }, 'other.raw': { size: SIZE } },
    steps: [
      add({ driver: 'file', 'node-name': 'diskf', filename: '$D/disk.raw' }),
      add({ driver: 'raw', 'node-name': 'disk', file: 'diskf' }),
      add({ driver: 'file', 'node-name': 'topf', filename: '$D/top.qcow2' }),
      add({ driver: 'qcow2', 'node-name': 'top', file: 'topf', backing: 'disk' }),
      startServer,
      exportDisk('top'),
      ...[
        { filename: '$D/other.raw' },
        { locking: 'off' },
        { aio: 'native' },
        { 'read-only': true },
        { 'force-share': true },
        { 'auto-read-only': true },
        { cache: { 'no-flush': true } },
        {},
      ].map(more => reopen({ driver: 'file', 'node-name': 'diskf', filename: '$D/disk.raw', ...more })),
      ...[
        { file: 'disk' },
        { file: null },
        { file: file('disk.raw') },
        { file: 'diskf', size: 64 << 20 },
        { file: 'diskf', 'read-only': true },
        { file: 'diskf' },
      ].map(more => reopen({ driver: 'raw', 'node-name': 'disk', ...more })),
      ...[
        { 'cache-size': 1 },
        { backing: 'topf' },
        { 'read-only': true },
        { 'force-share': true },
        { 'force-share': true, 'read-only': true },
        { nope: 1 },
        { 'lazy-refcounts': true },
        {},
      ].map(more => reopen({ driver: 'qcow2', 'node-name': 'top', file: 'topf', backing: 'disk', ...more })),
      reopen(
        { driver: 'qcow2', 'node-name': 'top', file: 'topf', backing: 'disk', discard: 'unmap' },
        { driver: 'raw', 'node-name': 'nope', file: 'diskf' },
      ),
      reopen({ driver: 'file', filename: '$D/disk.raw' }),
      stream({ device: 'top', 'auto-finalize': false }),
      event('BLOCK_JOB_PENDING'),
      reopen({ driver: 'qcow2', 'node-name': 'top', file: 'topf', backing: null }),
      qmp('job-cancel', { id: 'j' }),
      job('j', 'null'),
      guest('top', 'write -P 5 0 64k'),
      content('top'),
      nodes,
    ],
  },
]
