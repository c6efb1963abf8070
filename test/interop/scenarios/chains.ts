// qcow2 images and backing chains: what is told of them, bitmaps and exports that reach through them, backups of one layer.

import {
  bitmap,
  content,
  event,
  exportDisk,
  guest,
  guestDiffers,
  job,
  map,
  open,
  qmp,
  startServer,
  type Scenario,
} from '../../helpers/scenario.ts'

const chain = {
  'base.qcow2': { size: '8M', format: 'qcow2', seed: 6 },
  'top.qcow2': { size: '8M', format: 'qcow2', backing: 'base.qcow2' },
  'small.qcow2': { size: '8M', format: 'qcow2', options: 'cluster_size=16k' },
  'target.raw': { size: '8M' },
} as const

const file = (name: string) => ({ driver: 'file', filename: `$D/${name}` })
const all = qmp('query-named-block-nodes')
const add = (node: string, name: string, more: object = {}) => qmp('block-dirty-bitmap-add', { node, name, ...more })

const stillShown = {
  ours: { return: [{ drv: 'file' }, { drv: 'qcow2', image: { 'format-specific': { data: { corrupt: true } } } }] },
  because: 'one damaged image is no reason to show no node at all; QEMU answers that it is ejected',
}

/** 512 of the 1024 granules: as qemu-storage-daemon would count them after a write to all of the tail. */
const tailIsDirty = {
  ours: { return: { sha256: /^75fa7877/ } },
  because: 'what a disk has grown by counts as written: whoever has a copy of the old one has to read it',
}

export const chains: readonly Scenario[] = [
  {
    title: 'qcow2 images and what is behind them are opened, told of and closed',
    images: chain,
    steps: [
      open('top', 'top.qcow2'),
      open('small', 'small.qcow2'),
      all,
      qmp('query-named-block-nodes', { flat: true }),
      qmp('blockdev-add', { driver: 'qcow2', 'node-name': 'top', file: file('top.qcow2') }),
      qmp('blockdev-add', { driver: 'qcow2', 'node-name': 'raw', file: file('target.raw') }),
      qmp('blockdev-add', { driver: 'qcow2', 'node-name': 'x', file: file('nope') }),
      qmp('blockdev-add', { driver: 'qcow2', 'node-name': 'x' }),
      add('top', 'b'),
      add('small', 'b'),
      qmp('query-named-block-nodes', { flat: true }),
      qmp('block_resize', { 'node-name': 'small', size: (16 << 20) + 1000 }),
      qmp('block_resize', { 'node-name': 'small', size: 16 << 20 }),
      qmp('query-named-block-nodes', { flat: true }, { ignoring: ['count'] }),
      bitmap('small', 'b', { differs: tailIsDirty }),
      qmp('blockdev-del', { 'node-name': 'small' }),
      qmp('blockdev-del', { 'node-name': 'top' }),
      qmp('query-named-block-nodes'),
    ],
  },
  {
    title: 'a chain that is put together by hand',
    images: chain,
    steps: [
      open('base', 'base.qcow2', { 'read-only': true }),
      qmp('blockdev-add', { driver: 'qcow2', 'node-name': 'top', file: file('top.qcow2'), backing: 'nope' }),
      qmp('blockdev-add', { driver: 'qcow2', 'node-name': 'top', file: file('top.qcow2'), backing: 'base' }),
      qmp('blockdev-del', { 'node-name': 'base' }),
      startServer,
      add('base', 'old', { disabled: true }),
      exportDisk('top', { bitmaps: ['old'], 'allocation-depth': true }),
      guest('top', 'read 0 8M', 'write -P 1 1M 64k', 'write -z 2M 64k', 'write -P 3 100k 5k'),
      map('top', 'qemu:allocation-depth'),
      map('top', 'qemu:dirty-bitmap:old'),
      content('top'),
      qmp('block-export-del', { id: 'top' }),
      qmp('blockdev-del', { 'node-name': 'top' }),
      qmp('blockdev-del', { 'node-name': 'base' }),
      qmp('blockdev-add', { driver: 'qcow2', 'node-name': 'alone', file: file('top.qcow2'), backing: null }),
      all,
      exportDisk('alone'),
      content('alone'),
    ],
  },
  {
    title: 'a backup of the top layer only, and one of all',
    images: chain,
    steps: [
      open('top', 'top.qcow2', { discard: 'unmap' }),
      open('target', 'target.raw', { discard: 'unmap' }),
      startServer,
      exportDisk('top'),
      guest('top', 'write -P 1 1M 64k', 'write -P 2 5M 1M', 'write -z 7M 64k'),
      qmp('blockdev-backup', { 'job-id': 'j', device: 'top', target: 'target', sync: 'top' }),
      job('j', 'null'),
      exportDisk('target', { writable: false }),
      content('target'),
      qmp('block-export-del', { id: 'target' }),
      qmp('blockdev-backup', { 'job-id': 'j', device: 'top', target: 'target', sync: 'full' }),
      job('j', 'null'),
      content('top'),
    ],
  },
  {
    title: 'an image that contradicts itself is told of once, and takes no more writes',
    // The first entry of the L1 table, which qemu-img puts there, refers to an L2 table within a cluster.
    images: { 'bad.qcow2': { size: '8M', format: 'qcow2', damage: { at: 0x30000, bytes: '8000000000050200' }, scratch: true } },
    steps: [
      open('bad', 'bad.qcow2'),
      startServer,
      exportDisk('bad'),
      guest('bad', 'write 0 64k'),
      event('BLOCK_IMAGE_CORRUPTED', {}, { ignoring: ['msg'] }),
      guestDiffers('bad', ['write 0 64k'], {
        ours: { stdout: 'write failed: Input/output error\n' },
        because: 'an image that is found damaged goes on failing as a disk does; QEMU ejects it, and says Invalid argument',
      }),
      qmp('query-named-block-nodes', { flat: true }, { differs: stillShown }),
    ],
  },
]
