// Objects: object-add and object-del, and the nodes and servers that refer to them.

import { guest, open, qmp, startServer, exportDisk, type Scenario } from '../../helpers/scenario.ts'

const group = (id: string, more: object = {}, options = {}) =>
  qmp('object-add', { 'qom-type': 'throttle-group', id, ...more }, options)
const secret = (id: string, more: object = {}) => qmp('object-add', { 'qom-type': 'secret', id, ...more })

const psk = (more: object) => qmp('object-add', { 'qom-type': 'tls-creds-psk', id: 'psk', dir: '$D', ...more })
const address = { addr: { type: 'unix', data: { path: '$D/nbd.sock' } } }

export const objects: readonly Scenario[] = [
  {
    title: 'throttle groups, their limits and who uses them',
    images: { 'disk.raw': { size: '1M' } },
    steps: [
      qmp('object-add', { id: 'x' }),
      qmp('object-add', { 'qom-type': 'nope', id: 'x' }),
      qmp('object-add', { 'qom-type': 'throttle-group' }),
      group('1x'),
      group(''),
      group('x', { nope: 1 }),
      group('x', { limits: { 'bps-total': 100, 'bps-read': 100 } }),
      group('x', { limits: { 'bps-total': -1 } }),
      group('x', { limits: { 'bps-total': 1e15 + 1 } }),
      group('x', { limits: { 'bps-total-max': 100 } }),
      group('x', { limits: { 'bps-total': 100, 'bps-total-max': 10 } }),
      group('x', { limits: { 'bps-total': 100, 'bps-total-max-length': 10 } }),
      group('x', { limits: { 'bps-total': 100, 'bps-total-max': 200, 'bps-total-max-length': 0 } }),
      group('x', { limits: { 'bps-total': 100, 'bps-total-max': 200, 'bps-total-max-length': -1 } }),
      group('x', { limits: { 'bps-total': 100, 'bps-total-max': 200, 'bps-total-max-length': 2 ** 32 } }),
      group('x', { 'x-iops-size': -1, 'x-iops-total': 100 }),
      group('x', { limits: { 'iops-size': 100 } }),
      group('x', { 'x-bps-total': 100, 'x-iops-total-max': 5 }),
      group('old', { 'x-bps-total': 10_000_000, 'x-iops-total': 100 }),
      group('g', { limits: { 'bps-total': 100_000_000, 'bps-total-max': 200_000_000 } }),
      group('g'),
      open('disk', 'disk.raw'),
      qmp('blockdev-add', { driver: 'throttle', 'node-name': 't', file: 'disk' }),
      qmp('blockdev-add', { driver: 'throttle', 'node-name': 't', 'throttle-group': 'nope', file: 'disk' }),
      qmp('blockdev-add', { driver: 'throttle', 'node-name': 't', 'throttle-group': 'g', file: 'disk' }),
      qmp('query-named-block-nodes'),
      startServer,
      exportDisk('t'),
      guest('t', 'write -P 1 0 64k', 'read -P 1 0 64k', 'read -P 0 64k 64k'),
      qmp('object-del', { id: 'g' }),
      qmp('object-del', { id: 'nope' }),
      ...['old', 'old', 'nope'].map(other =>
        qmp('blockdev-reopen', { options: [{ driver: 'throttle', 'node-name': 't', 'throttle-group': other, file: 'disk' }] }),
      ),
      qmp('object-del', { id: 'old' }),
      qmp('object-del', { id: 'g' }),
      qmp('object-del', { id: 'g' }),
      qmp('block-export-del', { id: 't' }),
      qmp('blockdev-del', { 'node-name': 't' }),
      qmp('object-del', { id: 'old' }),
    ],
  },
  {
    title: 'secrets and iothreads',
    steps: [
      secret('s'),
      secret('s', { data: 'a', file: 'b' }),
      secret('s', { file: '$D/nope' }),
      secret('s', { data: 'zz!!', format: 'base64' }),
      secret('s', { data: 'abc', format: 'nope' }),
      secret('s', { data: 'YWJj', format: 'base64' }),
      secret('s', { data: 'abc' }),
      secret('raw', { data: 'abc' }),
      qmp('object-add', { 'qom-type': 'iothread', id: 'io', 'poll-max-ns': 'x' }),
      qmp('object-add', { 'qom-type': 'iothread', id: 'io', 'thread-pool-min': 5, 'thread-pool-max': 2 }),
      qmp('object-add', { 'qom-type': 'iothread', id: 'io', 'poll-max-ns': 1000 }),
      qmp('object-add', { 'qom-type': 'iothread', id: 'io' }),
      qmp('nbd-server-start', { addr: { type: 'unix', data: { path: '$D/nbd.sock' } }, 'tls-creds': 's' }),
      qmp('object-add', { 'qom-type': 'tls-creds-psk', id: 'psk', endpoint: 'server' }),
      qmp('object-add', { 'qom-type': 'tls-creds-psk', id: 'psk', dir: '$D', endpoint: 'server' }),
      qmp('object-add', { 'qom-type': 'tls-creds-x509', id: 'x', dir: '$D', endpoint: 'server' }),
      { kind: 'tool', tool: 'sh', args: ['-c', 'echo u:0123456789abcdef > $D/keys.psk'] },
      psk({ endpoint: 'server', username: 'u' }),
      ...[{}, { username: 'nobody' }, { username: 'u' }].map(more => psk({ endpoint: 'client', ...more })),
      ...['psk', 'io'].map(id => qmp('nbd-server-start', { ...address, 'tls-creds': id })),
      qmp('blockdev-add', { driver: 'luks', 'node-name': 'x', file: { driver: 'null-co' }, 'key-secret': 'io' }),
      secret('s2', { data: 'abc', keyid: 'io', iv: 'AAAA' }),
      qmp('object-del', { id: 'psk' }),
      qmp('object-del', { id: 'io' }),
      qmp('object-del', { id: 's' }),
      qmp('object-del', { id: 's' }),
    ],
  },
]
