// Nodes: blockdev-add, blockdev-del, query-named-block-nodes and block_resize.

import { open, qmp, type Scenario } from '../../helpers/scenario.ts'

export const nodes: readonly Scenario[] = [
  {
    title: 'nodes over a file are added, shown and deleted',
    images: {
      'a.raw': { size: '4M', seed: 1 },
      'b.raw': { size: '1M' },
      'c.qcow2': { size: '1M', format: 'qcow2', backing: 'b.raw' },
    },
    steps: [
      qmp('query-named-block-nodes'),
      qmp('blockdev-add', { driver: 'file', 'node-name': 'file', filename: '$D/a.raw' }),
      qmp('blockdev-add', { driver: 'raw', 'node-name': 'disk', file: 'file' }),
      open('other', 'b.raw', { 'read-only': true, cache: { 'no-flush': true }, 'detect-zeroes': 'on' }),
      qmp('blockdev-add', { driver: 'raw', 'node-name': 'window', file: 'disk', offset: 65536, size: 1048576 }),
      open('image', 'c.qcow2', { backing: 'other' }),
      qmp('blockdev-add', { driver: 'raw', 'node-name': 'over', file: 'image' }),
      qmp('query-named-block-nodes'),
      qmp('query-named-block-nodes', { flat: true }),
      qmp('blockdev-del', { 'node-name': 'over' }),
      qmp('blockdev-del', { 'node-name': 'image' }),
      qmp('blockdev-del', { 'node-name': 'file' }),
      qmp('blockdev-del', { 'node-name': 'window' }),
      qmp('blockdev-del', { 'node-name': 'disk' }),
      qmp('blockdev-del', { 'node-name': 'file' }),
      qmp('blockdev-del', { 'node-name': 'other' }),
      qmp('query-named-block-nodes'),
    ],
  },
]
