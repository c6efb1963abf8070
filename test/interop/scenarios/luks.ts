// Encrypted volumes: opened, used and read by QEMU afterwards.

import { content, exportDisk, guest, map, qmp, startServer, type Scenario } from '../../helpers/scenario.ts'

const secret = (id: string, data: string) => qmp('object-add', { 'qom-type': 'secret', id, data })
const file = { driver: 'file', filename: '$D/disk.luks' }
const add = (more: object) => qmp('blockdev-add', { driver: 'luks', 'node-name': 'disk', file, ...more })
const shown = qmp('query-named-block-nodes', { flat: true }, { ignoring: ['actual-size'] })
const wholeSectors = {
  ours: { error: { desc: /no multiple of 512/ } },
  because: 'the size of an encrypted disk is a multiple of 512: a disk of QEMU takes any, and reads as whole sectors',
}

export const luks: readonly Scenario[] = [
  {
    title: 'an encrypted volume is opened by its password, and used',
    images: { 'disk.luks': { size: '1M', format: 'luks', scratch: true }, 'not.raw': { size: '1M' } },
    steps: [
      secret('s', 'a password'),
      secret('bad', 'another'),
      add({}),
      add({ 'key-secret': 'nope' }),
      add({ 'key-secret': 's', file: { driver: 'file', filename: '$D/not.raw' } }),
      add({ 'key-secret': 's', nope: 1 }),
      qmp('blockdev-add', { driver: 'file', 'node-name': 'file', filename: '$D/disk.luks' }),
      qmp('blockdev-create', { 'job-id': 'x', options: { driver: 'luks', file: 'file' } }),
      qmp('blockdev-create', { 'job-id': 'x', options: { driver: 'luks', file: 'file', size: 512, 'cipher-alg': 'nope' } }),
      qmp('blockdev-del', { 'node-name': 'file' }),
      add({ 'key-secret': 'bad' }),
      add({ 'key-secret': 's' }),
      qmp('object-del', { id: 's' }),
      shown,
      startServer,
      exportDisk('disk'),
      guest('disk', 'write -P 1 0 1M', 'write -z 64k 10k', 'write -P 2 100001 333', 'read -P 1 0 64k', 'read -P 0 64k 10k'),
      map('disk'),
      content('disk'),
      qmp('blockdev-reopen', { options: [{ driver: 'luks', 'node-name': 'disk', file, 'key-secret': 's', 'read-only': true }] }),
      qmp('blockdev-reopen', { options: [{ driver: 'luks', 'node-name': 'disk', file, 'key-secret': 'bad' }] }),
      qmp('block-export-del', { id: 'disk' }),
      qmp('block_resize', { 'node-name': 'disk', size: (2 << 20) - 100 }, { differs: wholeSectors }),
      qmp('block_resize', { 'node-name': 'disk', size: 2 << 20 }),
      shown,
      qmp('blockdev-del', { 'node-name': 'disk' }),
      {
        kind: 'tool',
        tool: 'qemu-io',
        args: [
          '--object',
          'secret,id=s,data=a password',
          '--image-opts',
          'driver=luks,key-secret=s,file.filename=$D/disk.luks',
          ...['read -P 1 0 64k', 'read -P 2 100001 333', 'length'].flatMap(text => ['-c', text]),
        ],
      },
    ],
  },
]
