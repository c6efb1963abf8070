// A frozen view by hand: copy-before-write over a disk, snapshot-access over that, and a reader of it while the guest writes.

import { bitmap, content, exportDisk, guest, map, open, qmp, startServer, type Scenario } from '../../helpers/scenario.ts'

const images = { 'disk.raw': { size: '4M', seed: 7 }, 'scratch.raw': { size: '4M', scratch: true } } as const
const cbw = (more: object = {}) => ({ driver: 'copy-before-write', 'node-name': 'cbw', file: 'disk', target: 'scratch', ...more })

export const fleecing: readonly Scenario[] = [
  {
    title: 'a frozen view keeps what guests overwrite',
    images,
    steps: [
      open('disk', 'disk.raw'),
      open('scratch', 'scratch.raw'),
      qmp('block-dirty-bitmap-add', { node: 'disk', name: 'b' }),
      qmp('blockdev-add', cbw({ target: 'nope' })),
      qmp('blockdev-add', cbw({ 'on-cbw-error': 'nope' })),
      qmp('blockdev-add', cbw({ bitmap: { node: 'disk', name: 'nope' } })),
      qmp('blockdev-add', cbw({ bitmap: { node: 'nope', name: 'b' } })),
      qmp('blockdev-add', { driver: 'copy-before-write', 'node-name': 'cbw', file: 'disk' }),
      qmp('blockdev-add', cbw()),
      qmp('blockdev-add', { driver: 'snapshot-access', 'node-name': 'view', file: 'cbw' }),
      startServer,
      exportDisk('cbw', { name: 'disk' }),
      exportDisk('view', { writable: false }),
      content('view'),
      guest('disk', 'write -P 1 0 64k', 'write -P 2 1000k 100k', 'write -P 3 4095k 1k'),
      content('view'),
      content('disk'),
      bitmap('disk', 'b'),
      map('view'),
      guest('disk', 'write -P 9 0 64k'),
      content('view'),
      qmp('blockdev-del', { 'node-name': 'cbw' }),
      qmp('block-export-del', { id: 'view' }),
      qmp('blockdev-del', { 'node-name': 'view' }),
      qmp('block-export-del', { id: 'cbw' }),
      qmp('blockdev-del', { 'node-name': 'cbw' }),
      bitmap('disk', 'b'),
    ],
  },
]
