// Nodes: blockdev-add, blockdev-del, query-named-block-nodes and block_resize.

import { open, qmp, type Scenario } from '../../helpers/scenario.ts'

const because = 'a node over one that cannot be written says so of itself; QEMU refuses the first who is to write'

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
  {
    title: 'nodes over a file that was opened to be read only',
    images: { 'a.raw': { size: '4M' }, 'c.qcow2': { size: '4M', format: 'qcow2' } },
    steps: [
      qmp('nbd-server-start', { addr: { type: 'unix', data: { path: '$D/nbd.sock' } } }),
      ...[{}, { 'read-only': false }, { 'auto-read-only': true }].flatMap(more => [
        ...['a.raw', 'c.qcow2'].map(image =>
          qmp('blockdev-add', {
            driver: image.slice(2),
            'node-name': image.slice(2),
            file: { driver: 'file', 'node-name': image, filename: `$D/${image}`, 'read-only': true },
            ...more,
          }),
        ),
        qmp(
          'query-named-block-nodes',
          { flat: true },
          { differs: { ours: { return: [{}, { drv: 'raw', ro: true }] }, because } },
        ),
        qmp(
          'block-export-add',
          { type: 'nbd', id: 'e', 'node-name': 'raw', writable: true },
          { differs: { ours: { error: { desc: 'Cannot export read-only node as writable' } }, because } },
        ),
        qmp('blockdev-del', { 'node-name': 'raw' }),
      ]),
      qmp('blockdev-add', { driver: 'file', 'node-name': 'file', filename: '$D/c.qcow2', 'read-only': true }),
      qmp('blockdev-add', { driver: 'qcow2', 'node-name': 'disk', file: 'file' }),
      qmp('blockdev-add', { driver: 'qcow2', 'node-name': 'disk', file: 'file', 'read-only': true }),
      qmp('query-named-block-nodes'),
    ],
  },
]
