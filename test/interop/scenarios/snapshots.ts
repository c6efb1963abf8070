// Snapshots outside of an image, and nodes that are opened in another way while they are used.

import {
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

const images = {
  'base.qcow2': { size: '8M', format: 'qcow2', seed: 6 },
  'top.qcow2': { size: '8M', format: 'qcow2', backing: 'base.qcow2' },
  'over.qcow2': { size: '8M', format: 'qcow2' },
  'over2.qcow2': { size: '8M', format: 'qcow2' },
  'short.qcow2': { size: '4M', format: 'qcow2' },
  'disk.raw': { size: '8M', seed: 4 },
  'other.raw': { size: '8M', seed: 5 },
} as const

const file = (name: string, more: object = {}) => ({ driver: 'file', filename: `$D/${name}`, ...more })
const overlay = (name: string, image: string) =>
  qmp('blockdev-add', { driver: 'qcow2', 'node-name': name, file: file(image), backing: null })
const snapshot = (node: string, over: string, options = {}) => qmp('blockdev-snapshot', { node, overlay: over }, options)
const sync = (more: object, options = {}) => qmp('blockdev-snapshot-sync', { 'snapshot-file': '$D/new.qcow2', ...more }, options)
/** How long the files of images have become is each program's own business. */
const all = qmp('query-named-block-nodes', { flat: true }, { ignoring: ['virtual-size'] })
const nodes = qmp('query-named-block-nodes', {}, { ignoring: ['virtual-size'] })
const info = (image: string) =>
  ({ kind: 'tool', tool: 'sh', args: ['-c', `qemu-img info -U --output=json $D/${image} | grep -v actual-size`] }) as const

const CLOCKS = ['date-sec', 'date-nsec', 'vm-clock-sec', 'vm-clock-nsec', 'virtual-size', 'actual-size']
const keep = (device: string, name: string) => qmp('blockdev-snapshot-internal-sync', { device, name })
const drop = (device: string, which: object) =>
  qmp('blockdev-snapshot-delete-internal-sync', { device, ...which }, { ignoring: CLOCKS })
const kept = qmp('query-named-block-nodes', { flat: true }, { ignoring: CLOCKS })
/** What an internal snapshot holds, and whether the image is as it should be. */
const inside = (image: string, name: string) =>
  ({
    kind: 'tool',
    tool: 'sh',
    args: [
      '-c',
      `qemu-img check -q -U $D/${image} && qemu-img convert -U -l snapshot.name=${name} -O raw $D/${image} $D/out && sha256sum < $D/out`,
    ],
  }) as const

export const snapshots: readonly Scenario[] = [
  {
    title: 'a snapshot and a backup of what is behind it at one instant',
    images: { 'a.qcow2': { size: '4M', format: 'qcow2', seed: 4 }, 't.raw': { size: '4M' } },
    steps: [
      open('a', 'a.qcow2'),
      open('t', 't.raw'),
      startServer,
      exportDisk('a'),
      guest('a', 'write -P 1 0 1M'),
      transaction([
        ['blockdev-snapshot-sync', { 'node-name': 'a', 'snapshot-file': '$D/n.qcow2', 'snapshot-node-name': 'n' }],
        ['blockdev-backup', { 'job-id': 'j', device: 'a', target: 't', sync: 'full', 'auto-finalize': false }],
      ]),
      guest('a', 'write -P 2 512k 1M'),
      event('BLOCK_JOB_PENDING'),
      qmp('job-finalize', { id: 'j' }),
      job('j', 'null'),
      guest('a', 'write -P 3 2M 64k'),
      content('a'),
      qmp('blockdev-del', { 'node-name': 't' }),
    ],
  },
  {
    title: 'what is wrong with an internal snapshot is told in order',
    images,
    steps: [
      open('disk', 'disk.raw'),
      open('base', 'base.qcow2'),
      keep('nope', 'one'),
      keep('disk', 'one'),
      keep('base', ''),
      keep('base', 'one'),
      keep('base', 'one'),
      kept,
      drop('nope', { name: 'one' }),
      drop('disk', { name: 'one' }),
      drop('base', {}),
      drop('base', { name: 'two' }),
      drop('base', { id: '7' }),
      drop('base', { id: '1', name: 'two' }),
      drop('base', { name: '' }),
      qmp('object-add', { 'qom-type': 'throttle-group', id: 'g' }),
      qmp('blockdev-add', { driver: 'throttle', 'node-name': 'filter', 'throttle-group': 'g', file: 'base' }),
      keep('base', 'two'),
      keep('filter', 'two'),
      drop('base', { name: 'one' }),
      drop('filter', { name: 'one' }),
      qmp('blockdev-del', { 'node-name': 'filter' }),
      drop('base', { id: '2', name: 'two' }),
      kept,
      qmp('blockdev-del', { 'node-name': 'base' }),
      open('top', 'top.qcow2', { 'read-only': true }),
      keep('top', 'one'),
      drop('top', { name: 'one' }),
    ],
  },
  {
    title: 'internal snapshots keep the instant while a guest writes on, alone and with others, or not at all',
    images,
    steps: [
      open('base', 'base.qcow2'),
      overlay('over', 'over.qcow2'),
      startServer,
      exportDisk('base'),
      exportDisk('over'),
      guest('base', 'write -P 1 1M 64k'),
      keep('base', 'one'),
      guest('base', 'write -P 2 1M 64k', 'write -P 3 2M 64k'),
      inside('base.qcow2', 'one'),
      transaction([['blockdev-snapshot-internal-sync', { device: 'base', name: 'two' }], ['abort']]),
      transaction([
        ['blockdev-snapshot-internal-sync', { device: 'base', name: 'two' }],
        ['blockdev-snapshot-internal-sync', { device: 'base', name: 'two' }],
      ]),
      transaction([
        ['block-dirty-bitmap-add', { node: 'base', name: 'b' }],
        ['blockdev-snapshot-internal-sync', { device: 'base', name: 'two' }],
        ['blockdev-snapshot-internal-sync', { device: 'over', name: 'two' }],
      ]),
      guest('base', 'write -P 4 2M 64k'),
      guest('over', 'write -P 5 0 64k'),
      qmp('query-named-block-nodes', { flat: true }, { ignoring: CLOCKS }),
      content('base'),
      drop('base', { name: 'one' }),
      guest('base', 'write -P 6 4M 64k'),
      content('base'),
      qmp('block-export-del', { id: 'base' }),
      qmp('block-export-del', { id: 'over' }),
      qmp('blockdev-del', { 'node-name': 'base' }),
      qmp('blockdev-del', { 'node-name': 'over' }),
      inside('base.qcow2', 'two'),
      inside('over.qcow2', 'two'),
    ],
  },
  {
    title: 'what is wrong with a snapshot is told in order',
    images,
    steps: [
      open('disk', 'disk.raw'),
      open('top', 'top.qcow2'),
      overlay('over', 'over.qcow2'),
      snapshot('nope', 'over'),
      snapshot('disk', 'nope'),
      snapshot('disk', 'disk'),
      snapshot('over', 'disk'),
      snapshot('disk', 'top'),
      startServer,
      exportDisk('over'),
      snapshot('disk', 'over'),
      qmp('block-export-del', { id: 'over' }),
      sync({}),
      sync({ device: 'nope' }),
      sync({ 'node-name': 'nope' }),
      sync({ device: 'disk', 'node-name': 'nope' }),
      sync({ 'node-name': 'disk' }),
      sync({ 'node-name': 'disk', 'snapshot-node-name': 'over' }),
      sync({ 'node-name': 'disk', 'snapshot-node-name': 'new', format: 'raw' }),
      sync({ 'node-name': 'disk', 'snapshot-node-name': 'new', format: 'nope' }),
      sync({ 'node-name': 'disk', 'snapshot-node-name': 'new', mode: 'nope' }),
      sync({ 'node-name': 'disk', 'snapshot-node-name': 'new', 'snapshot-file': '$D/nowhere/new.qcow2' }),
      all,
    ],
  },
  {
    title: 'a guest writes to an overlay from the instant of a snapshot on',
    images,
    steps: [
      open('disk', 'disk.raw'),
      overlay('over', 'over.qcow2'),
      startServer,
      exportDisk('disk'),
      guest('disk', 'write -P 1 1M 64k'),
      snapshot('disk', 'over'),
      guest('disk', 'write -P 2 2M 64k', 'read -P 1 1M 64k'),
      nodes,
      content('disk'),
      map('disk'),
      snapshot('disk', 'over'),
      qmp('block-export-add', { type: 'nbd', id: 'base', name: 'base', 'node-name': 'disk', writable: true }),
      exportDisk('disk', { id: 'base', name: 'base', writable: false }),
      content('base'),
      qmp('blockdev-del', { 'node-name': 'disk' }),
      qmp('blockdev-del', { 'node-name': 'over' }),
      sync({ 'node-name': 'over', 'snapshot-node-name': 'new' }),
      guest('disk', 'write -P 3 3M 64k'),
      content('disk'),
      all,
      info('over.qcow2'),
      qmp('query-block-exports'),
    ],
  },
  {
    title: 'an image that is there is used as it is, longer or shorter',
    images,
    steps: [
      open('disk', 'disk.raw'),
      startServer,
      exportDisk('disk'),
      sync({ 'node-name': 'disk', 'snapshot-node-name': 'new', 'snapshot-file': '$D/over.qcow2', mode: 'existing' }),
      guest('disk', 'write -P 3 3M 64k'),
      content('disk'),
      info('over.qcow2'),
      qmp('block-export-del', { id: 'disk' }),
      all,
    ],
  },
  {
    title: 'snapshots of several disks happen together or not at all',
    images,
    steps: [
      open('disk', 'disk.raw'),
      open('other', 'other.raw'),
      overlay('over', 'over.qcow2'),
      startServer,
      exportDisk('disk'),
      exportDisk('other'),
      transaction([
        ['blockdev-snapshot', { node: 'disk', overlay: 'over' }],
        ['blockdev-snapshot-sync', { 'node-name': 'other', 'snapshot-file': '$D/new.qcow2', 'snapshot-node-name': 'new' }],
        ['abort'],
      ]),
      all,
      transaction([
        ['blockdev-snapshot', { node: 'disk', overlay: 'over' }],
        ['blockdev-snapshot-sync', { 'node-name': 'other', 'snapshot-file': '$D/new.qcow2', 'snapshot-node-name': 'new' }],
        ['block-dirty-bitmap-add', { node: 'over', name: 'b' }],
        ['block-dirty-bitmap-add', { node: 'new', name: 'b' }],
      ]),
      guest('disk', 'write -P 3 3M 64k'),
      guest('other', 'write -P 4 4M 64k'),
      all,
      content('disk'),
      content('other'),
    ],
  },
  {
    title: 'the name of a backing file is changed',
    images,
    steps: [
      open('top', 'top.qcow2'),
      open('disk', 'disk.raw'),
      overlay('over', 'over.qcow2'),
      qmp('change-backing-file', { device: 'nope', 'image-node-name': 'top', 'backing-file': 'x' }),
      qmp('change-backing-file', { device: 'top', 'image-node-name': 'nope', 'backing-file': 'x' }),
      qmp('change-backing-file', { device: 'over', 'image-node-name': 'over', 'backing-file': 'x' }),
      qmp('change-backing-file', { device: 'disk', 'image-node-name': 'disk', 'backing-file': 'x' }),
      qmp('change-backing-file', { device: 'over', 'image-node-name': 'top', 'backing-file': 'x' }),
      qmp('change-backing-file', { device: 'top', 'image-node-name': 'top', 'backing-file': '$D/base.qcow2' }),
      info('top.qcow2'),
    ],
  },
  {
    title: 'nodes are opened in another way while they are used',
    images,
    steps: [
      qmp('blockdev-add', { driver: 'raw', 'node-name': 'disk', file: file('disk.raw', { 'node-name': 'diskf' }) }),
      qmp('blockdev-add', { driver: 'qcow2', 'node-name': 'top', file: file('top.qcow2', { 'node-name': 'topf' }) }),
      qmp('blockdev-add', {
        driver: 'qcow2',
        'node-name': 'over',
        file: file('over.qcow2', { 'node-name': 'overf' }),
        backing: null,
      }),
      ...[
        { driver: 'qcow2' },
        { driver: 'qcow2', file: 'overf' },
        { driver: 'qcow2', 'node-name': 'nope', file: 'overf' },
        { driver: 'raw', 'node-name': 'over', file: 'overf' },
        { driver: 'qcow2', 'node-name': 'over' },
        { driver: 'qcow2', 'node-name': 'over', file: 'overf', 'detect-zeroes': 'unmap' },
        { driver: 'qcow2', 'node-name': 'over', file: 'overf', backing: 'nope' },
        { driver: 'qcow2', 'node-name': 'over', file: 'overf', backing: 'over' },
        { driver: 'qcow2', 'node-name': 'over', file: 'overf', backing: { driver: 'null-co', size: 100 } },
        { driver: 'qcow2', 'node-name': 'top', file: 'topf' },
      ].map(options => qmp('blockdev-reopen', { options: [options] })),
      all,
      qmp('blockdev-reopen', {
        options: [
          { driver: 'qcow2', 'node-name': 'over', file: 'overf', discard: 'unmap', 'detect-zeroes': 'unmap', backing: null },
        ],
      }),
      all,
      startServer,
      exportDisk('top'),
      qmp('blockdev-reopen', { options: [{ driver: 'qcow2', 'node-name': 'top', file: 'topf', backing: 'disk' }] }),
      guest('top', 'write -P 5 5M 64k'),
      content('top'),
      nodes,
      qmp('blockdev-reopen', { options: [{ driver: 'qcow2', 'node-name': 'top', file: 'topf', backing: null }] }),
      content('top'),
      all,
      qmp('blockdev-reopen', {
        options: [{ driver: 'qcow2', 'node-name': 'top', file: 'topf', backing: null, 'read-only': true }],
      }),
      qmp('block-export-del', { id: 'top' }),
      qmp('blockdev-reopen', {
        options: [
          { driver: 'raw', 'node-name': 'disk', file: 'diskf', offset: 65536 },
          { driver: 'qcow2', 'node-name': 'over', file: 'overf', backing: 'over' },
        ],
      }),
      all,
      qmp('blockdev-reopen', { options: [{ driver: 'raw', 'node-name': 'disk', file: 'diskf', offset: 65536 }] }),
      all,
      // What the parent has said of its file once does not hold for ever.
      ...[true, false, true, false].flatMap(readOnly => [
        qmp('blockdev-reopen', {
          options: [{ driver: 'qcow2', 'node-name': 'over', file: 'overf', backing: null, 'read-only': readOnly }],
        }),
        all,
      ]),
    ],
  },
]
