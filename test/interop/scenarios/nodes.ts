// Nodes: blockdev-add, blockdev-del, query-named-block-nodes and block_resize.

import { directMissing } from '../../helpers/direct.ts'
import { content, exportDisk, guest, open, qmp, startServer, type Scenario } from '../../helpers/scenario.ts'

const because = 'a node over one that cannot be written says so of itself; QEMU refuses the first who is to write'

/** How large a qcow2 image's file is at a moment is each one's own affair. */
const nodesNow = qmp('query-named-block-nodes', { flat: true }, { ignoring: ['virtual-size'] })
const add = (args: object) => qmp('blockdev-add', args)
const reopen = (options: object) => qmp('blockdev-reopen', { options: [options] })
const direct = (on: boolean) => ({ cache: { direct: on } })
const fileOf = (name: string, node: string) => ({ driver: 'file', 'node-name': node, filename: `$D/${name}` })

export const nodes: readonly Scenario[] = [
  {
    title: 'nodes over a file are added, shown and deleted',
    images: {
      'a.raw': { size: '4M', seed: 1 },
      'b.raw': { size: '1M' },
      'c.qcow2': { size: '1M', format: 'qcow2', backing: 'b.raw' },
      'd.qcow2': { size: '1M', format: 'qcow2', backing: 'b.raw' },
    },
    steps: [
      qmp('query-named-block-nodes'),
      qmp('blockdev-add', { driver: 'file', 'node-name': 'file', filename: '$D/a.raw' }),
      qmp('blockdev-add', { driver: 'raw', 'node-name': 'disk', file: 'file' }),
      open('other', 'b.raw', { 'read-only': true, cache: { 'no-flush': true }, 'detect-zeroes': 'on' }),
      qmp('blockdev-add', { driver: 'raw', 'node-name': 'window', file: 'disk', offset: 65536, size: 1048576 }),
      open('image', 'c.qcow2', { backing: 'other' }),
      qmp('blockdev-add', { driver: 'raw', 'node-name': 'over', file: 'image' }),
      ...['raw', 'qcow2'].map(driver => add({ driver, 'node-name': 'nowhere', file: '' })),
      add({ driver: 'qcow2', 'node-name': 'alone', file: { driver: 'file', filename: '$D/d.qcow2' }, backing: '' }),
      add({ driver: 'null-co', 'node-name': 'null', 'read-only': true, size: 1048576, 'latency-ns': 1 }),
      qmp('query-named-block-nodes'),
      qmp('query-named-block-nodes', { flat: true }),
      qmp('blockdev-del', { 'node-name': 'null' }),
      qmp('blockdev-del', { 'node-name': 'alone' }),
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
  {
    title: 'files around the page cache, and formats that hand that down',
    images: {
      'a.raw': { size: '4M', seed: 1 },
      'b.raw': { size: '1M', seed: 2 },
      'c.qcow2': { size: '4M', format: 'qcow2', seed: 3 },
      'd.raw': { size: '1M' },
    },
    steps: directMissing
      ? []
      : [
          add({ driver: 'file', 'node-name': 'a', filename: '$D/a.raw', aio: 'native' }),
          add({ driver: 'file', 'node-name': 'a', filename: '$D/a.raw', aio: 'native', ...direct(true) }),
          add({ driver: 'raw', 'node-name': 'disk', file: 'a', ...direct(true) }),
          add({ driver: 'raw', 'node-name': 'r', file: fileOf('b.raw', 'b'), ...direct(true) }),
          add({ driver: 'qcow2', 'node-name': 'c', file: { ...fileOf('c.qcow2', 'cf'), aio: 'native' }, ...direct(true) }),
          add({ driver: 'raw', 'node-name': 'd', file: { ...fileOf('d.raw', 'df'), aio: 'io_uring', ...direct(true) } }),
          nodesNow,
          startServer,
          ...['disk', 'r', 'c', 'd'].map(name => exportDisk(name)),
          ...['disk', 'r', 'c', 'd'].flatMap(name => [
            guest(
              name,
              'write -P 1 64k 64k',
              'write -P 2 4k 4k',
              'write -P 3 300000 5000',
              'write -z 512k 100k',
              'discard 256k 4k',
            ),
            guest(name, 'read -P 1 64k 64k', 'read -P 2 4k 4k', 'read -P 3 300000 5000', 'read -P 0 512k 100k'),
            content(name),
          ]),
          reopen({ driver: 'raw', 'node-name': 'r', file: 'b', ...direct(false) }),
          nodesNow,
          guest('r', 'write -P 9 64k 64k', 'read -P 9 64k 64k'),
          reopen({ driver: 'raw', 'node-name': 'r', file: 'b', ...direct(true) }),
          guest('r', 'read -P 9 64k 64k', 'write -P 10 64k 32k'),
          reopen({ driver: 'file', 'node-name': 'b', filename: '$D/b.raw' }),
          reopen({ driver: 'qcow2', 'node-name': 'c', file: 'cf' }),
          nodesNow,
          ...['r', 'c'].flatMap(name => [guest(name, 'write -P 11 96k 32k', 'read -P 11 96k 32k'), content(name)]),
        ],
  },
]
