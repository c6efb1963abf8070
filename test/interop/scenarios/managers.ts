// What managers ask beside the work itself: when an image needs room, how far nodes were written, and the object model.

import { exportDisk, event, guest, open, qmp, startServer, type Scenario } from '../../helpers/scenario.ts'

const threshold = (node: string, bytes: number | string) =>
  qmp('block-set-write-threshold', { 'node-name': node, 'write-threshold': bytes })
const list = (path: string) => qmp('qom-list', { path })
const get = (path: string, property: string, options = {}) => qmp('qom-get', { path, property }, options)
const set = (path: string, property: string, value: unknown, options = {}) => qmp('qom-set', { path, property, value }, options)
const properties = (typename: string) => qmp('qom-list-properties', { typename })

const untold = { ours: { error: { desc: /secrets are not told/ } }, because: 'whoever has made a secret knows it' }

export const managers: readonly Scenario[] = [
  {
    title: 'somebody wants to know when a node is written behind an offset',
    images: { 'disk.raw': { size: '4M', seed: 1 }, 'image.qcow2': { size: '4M', format: 'qcow2' } },
    steps: [
      open('disk', 'disk.raw'),
      open('image', 'image.qcow2'),
      qmp('block-set-write-threshold', {}),
      qmp('block-set-write-threshold', { 'node-name': 'disk' }),
      threshold('nope', 1),
      threshold('disk', 'x'),
      threshold('disk', 1_000_000),
      qmp('query-named-block-nodes', { flat: true }, { ignoring: ['virtual-size'] }),
      startServer,
      exportDisk('disk'),
      exportDisk('image'),
      guest('disk', 'write 0 4k', 'write 990000 1000', 'write 999990 100', 'write 2M 4k'),
      event('BLOCK_WRITE_THRESHOLD'),
      qmp('query-named-block-nodes', { flat: true }, { ignoring: ['virtual-size'] }),
      threshold('disk', -1),
      qmp('query-named-block-nodes', { flat: true }, { ignoring: ['virtual-size'] }),
      threshold('disk', 1),
      threshold('disk', 0),
      guest('disk', 'write 0 4k'),
      threshold('disk', 100_000),
      guest('disk', 'discard 0 4M', 'write 98k 1k', 'write -z 0 4M'),
      event('BLOCK_WRITE_THRESHOLD'),
      threshold('image', 1),
      guest('image', 'write 0 4k'),
      event('BLOCK_WRITE_THRESHOLD'),
      qmp('query-blockstats'),
      qmp('query-blockstats', { 'query-nodes': false }),
      qmp('query-blockstats', { 'query-nodes': 1 }),
      qmp('block-export-del', { id: 'image' }),
      qmp('blockdev-del', { 'node-name': 'image' }),
      qmp('query-blockstats', { 'query-nodes': true }),
    ],
  },
  {
    title: 'objects are found again, and their limits changed',
    images: { 'disk.raw': { size: '1M' } },
    steps: [
      ...['/nope', '', 'objects', '/objects/nope', 'nope/nope'].map(list),
      qmp('qom-list', {}),
      get('nope', 'type'),
      set('nope', 'type', 1),
      qmp('object-add', { 'qom-type': 'throttle-group', id: 'group', limits: { 'bps-total': 100_000_000 } }),
      qmp('object-add', { 'qom-type': 'iothread', id: 'thread' }),
      qmp('object-add', { 'qom-type': 'iothread', id: 'other', 'poll-max-ns': -1 }),
      qmp('object-add', { 'qom-type': 'secret', id: 'secret', data: 'abc' }),
      ...['/objects', '/objects/group', 'group', '/objects/thread', 'secret'].map(list),
      get('/', 'type'),
      get('group', 'type'),
      get('group', 'limits'),
      get('group', 'x-bps-total'),
      get('group', 'nope'),
      get('/objects/thread', 'poll-max-ns'),
      get('secret', 'format'),
      get('secret', 'keyid'),
      get('secret', 'data', { differs: untold }),
      open('disk', 'disk.raw'),
      qmp('blockdev-add', { driver: 'throttle', 'node-name': 'slow', 'throttle-group': 'group', file: 'disk' }),
      set('group', 'limits', { 'bps-total': 200_000_000, 'bps-total-max': 300_000_000 }),
      get('group', 'limits'),
      set('group', 'limits', { 'bps-read': 1 }),
      set('group', 'limits', { 'bps-total': 0, 'bps-total-max': 0, 'bps-read': 50_000_000 }),
      get('group', 'limits'),
      set('group', 'limits', { nope: 1 }),
      set('group', 'limits', 1),
      set('group', 'limits', { 'bps-read': 'x' }),
      set('group', 'x-bps-total', 1),
      set('group', 'nope', 1),
      set('group', 'type', 'x'),
      set('thread', 'poll-max-ns', 5),
      set('thread', 'poll-max-ns', -5),
      set('thread', 'poll-max-ns', 'x'),
      get('thread', 'poll-max-ns'),
      ...['throttle-group', 'iothread', 'secret', 'tls-creds-x509', 'tls-creds-psk', 'authz-simple', 'authz-list', 'nope'].map(
        properties,
      ),
    ],
  },
  {
    title: 'a secret is encrypted with another',
    steps: [
      qmp('object-add', { 'qom-type': 'secret', id: 'short', data: 'abc' }),
      qmp('object-add', { 'qom-type': 'secret', id: 'master', data: Buffer.alloc(32, 7).toString('base64'), format: 'base64' }),
      ...[{}, { iv: 'AAAA' }, { iv: '!' }, { iv: Buffer.alloc(16).toString('base64') }].map(more =>
        qmp('object-add', {
          'qom-type': 'secret',
          id: 'encrypted',
          data: 'VHFhCSpWd9zJBnnisA7Zbw==',
          format: 'base64',
          keyid: 'master',
          ...more,
        }),
      ),
    ],
  },
]
