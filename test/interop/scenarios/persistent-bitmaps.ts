// Dirty bitmaps that are kept with qcow2 images: added, closed away, found again, read-only and refused.

import {
  bitmap,
  event,
  exportDisk,
  guest,
  info,
  open,
  qmp,
  startServer,
  transaction,
  type Scenario,
} from '../../helpers/scenario.ts'

const add = (node: string, name: string, more: object = {}, options = {}) =>
  qmp('block-dirty-bitmap-add', { node, name, persistent: true, ...more }, options)
const verb = (what: string, node: string, name: string) => qmp(`block-dirty-bitmap-${what}`, { node, name })
const close = (node: string) => qmp('blockdev-del', { 'node-name': node })
const all = qmp('query-named-block-nodes', { flat: true }, { ignoring: ['bitmaps', 'virtual-size'] })

/** An image with three bitmaps, of which one was in use when a program died. */
const CRASHED = [
  'cd $D',
  'qemu-img create -q -f qcow2 disk.qcow2 4M',
  'qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 top.qcow2',
  'qemu-img bitmap --add disk.qcow2 lost',
  '(qemu-io -c "write 0 64k" -c "sigraise 9" disk.qcow2 >log 2>&1 || true)',
  'qemu-img bitmap --add disk.qcow2 on',
  'qemu-img bitmap --add --disable disk.qcow2 off',
].join(' && ')
const file = (name: string) => ({ driver: 'file', filename: `$D/${name}` })
const openOver = (more: object) =>
  qmp('blockdev-add', { driver: 'qcow2', 'node-name': 'disk', file: { ...file('disk.qcow2'), 'node-name': 'diskf' }, ...more })
const openTop = qmp('blockdev-add', { driver: 'qcow2', 'node-name': 'top', file: file('top.qcow2'), backing: 'disk' })

// `bitmaps` and `virtual-size`, of images, are not compared: files grow by other steps, and verbs
// are durable here when they are answered, and QEMU's when the image is closed.

export const persistentBitmaps: readonly Scenario[] = [
  {
    title: 'persistent bitmaps are found again as they were left',
    images: {
      'disk.qcow2': { size: '8M', format: 'qcow2' },
      'old.qcow2': { size: '8M', format: 'qcow2', options: 'compat=0.10' },
    },
    steps: [
      open('disk', 'disk.qcow2'),
      open('old', 'old.qcow2'),
      add('old', 'a'),
      add('disk', 'bad', { granularity: 100 }),
      add('disk', ''),
      add('disk', 'a'),
      add('disk', 'a'),
      add('disk', 'fine', { granularity: 512 }),
      add('disk', 'off', { disabled: true, granularity: 4096 }),
      qmp('block-dirty-bitmap-add', { node: 'disk', name: 'passing' }),
      all,
      startServer,
      exportDisk('disk'),
      guest('disk', 'write -P 1 1M 100k', 'write -P 2 8388096 512', 'write -z 3M 64k'),
      transaction([
        ['block-dirty-bitmap-merge', { node: 'disk', target: 'off', bitmaps: ['a'] }],
        ['block-dirty-bitmap-clear', { node: 'disk', name: 'a' }],
      ]),
      guest('disk', 'write -P 3 5M 4k'),
      ...['a', 'fine', 'off'].map(name => bitmap('disk', name)),
      qmp('block-export-del', { id: 'disk' }),
      event('BLOCK_EXPORT_DELETED', { id: 'disk' }),
      close('disk'),
      open('disk', 'disk.qcow2'),
      ...['a', 'fine', 'off', 'passing'].map(name => bitmap('disk', name)),
      all,
      verb('remove', 'disk', 'fine'),
      verb('enable', 'disk', 'off'),
      exportDisk('disk'),
      guest('disk', 'write -P 4 7M 4k'),
      qmp('block-export-del', { id: 'disk' }),
      event('BLOCK_EXPORT_DELETED', { id: 'disk' }),
      close('disk'),
      open('disk', 'disk.qcow2', { 'read-only': true }),
      ...['a', 'off', 'fine'].map(name => bitmap('disk', name)),
      ...['clear', 'remove'].map(what => verb(what, 'disk', 'a')),
      qmp('block-dirty-bitmap-merge', { node: 'disk', target: 'a', bitmaps: ['off'] }),
      all,
    ],
  },
  {
    title:
      'a bitmap that nobody stored is refused by every verb, and what those of a read-only image are told holds when it is written again',
    images: { 'target.raw': { size: '4M' } },
    steps: [
      { kind: 'tool', tool: 'sh', args: ['-c', CRASHED] },
      open('target', 'target.raw'),
      open('disk', 'disk.qcow2'),
      all,
      ...['clear', 'enable', 'disable'].map(what => verb(what, 'disk', 'lost')),
      qmp('block-dirty-bitmap-merge', { node: 'disk', target: 'on', bitmaps: ['lost'] }),
      qmp('block_resize', { 'node-name': 'disk', size: 8 << 20 }),
      qmp('blockdev-add', {
        driver: 'copy-before-write',
        'node-name': 'cbw',
        file: 'disk',
        target: 'target',
        bitmap: { node: 'disk', name: 'lost' },
      }),
      close('disk'),
      openOver({ 'read-only': true }),
      verb('disable', 'disk', 'on'),
      verb('enable', 'disk', 'off'),
      verb('enable', 'disk', 'lost'),
      all,
      openTop,
      startServer,
      exportDisk('top', { writable: false, bitmaps: ['off', 'off', { node: 'disk', name: 'on' }] }),
      info('top'),
      qmp('block-export-del', { id: 'top' }),
      event('BLOCK_EXPORT_DELETED', { id: 'top' }),
      close('top'),
      qmp('blockdev-reopen', { options: [{ driver: 'qcow2', 'node-name': 'disk', file: 'diskf', 'read-only': false }] }),
      all,
      exportDisk('disk'),
      guest('disk', 'write -P 1 1M 100k'),
      ...['on', 'off'].map(name => bitmap('disk', name)),
    ],
  },
]
