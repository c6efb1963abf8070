// Atomic disk snapshots: of several disks at one instant, made or reused, and a checkpoint, made and deleted; at each step all of them or none, whatever fails
// and whenever the daemon is killed.

import { allOrNothing, DISKS, type Daemon } from '../helpers/all-or-nothing.ts'
import { qemuImg } from '../helpers/qemu.ts'

const overlay = (daemon: Daemon, disk: string) => `${daemon.folder}/${disk}-over.qcow2`

allOrNothing({
  'disk-snapshot of both disks, while guests write': {
    guests: true,
    act: daemon =>
      daemon.execute('disk-snapshot', { machine: 'db', disks: DISKS.map(disk => ({ disk, file: overlay(daemon, disk) })) }),
  },
  'disk-snapshot onto images that are there': {
    steps: 1,
    async begin(daemon) {
      for (const disk of DISKS)
        await qemuImg('create', '-q', '-f', 'qcow2', '-b', `${daemon.folder}/${disk}.qcow2`, '-F', 'qcow2', overlay(daemon, disk))
    },
    act: daemon =>
      daemon.execute('disk-snapshot', {
        machine: 'db',
        disks: DISKS.map(disk => ({ disk, file: overlay(daemon, disk) })),
        reuse: true,
      }),
  },
  'snapshots of disks of two machines in one transaction, while guests write': {
    apart: true,
    guests: true,
    act: daemon =>
      daemon.execute('transaction', {
        actions: ['db.root', 'web.data'].map((node, at) => ({
          type: 'blockdev-snapshot-sync',
          data: { 'node-name': node, 'snapshot-file': overlay(daemon, DISKS[at]!), 'snapshot-node-name': `over-${at}` },
        })),
      }),
  },
  'a checkpoint of both disks': {
    steps: 1,
    act: daemon => daemon.execute('checkpoint-create', { machine: 'db', name: 'three' }),
    state: async daemon => (await daemon.execute<{ name: string }[]>('query-checkpoints')).map(({ name }) => name),
  },
  'checkpoint-repair of bitmaps that no checkpoint knows': {
    steps: 1,
    repairs: true,
    async begin(daemon) {
      for (const name of ['three', 'four']) await daemon.execute('checkpoint-create', { machine: 'db', name })
      await daemon.execute('checkpoint-delete', { machine: 'db', name: 'three', 'metadata-only': true })
    },
    act: daemon => daemon.execute('checkpoint-repair', { machine: 'db', mend: true }),
    async state(daemon) {
      const { findings } = await daemon.execute<{ findings: object[] }>('checkpoint-repair', { machine: 'db' })
      // Each image keeps its own: after a crash one may be mended without the other.
      return findings.length === 0 ? 'mended' : 'not mended'
    },
  },
  'checkpoint-delete, of one that another continues': {
    steps: 1,
    async begin(daemon) {
      await daemon.execute('disk-snapshot', { machine: 'db', disks: [{ disk: 'root', file: overlay(daemon, 'root') }] })
      await daemon.execute('checkpoint-create', { machine: 'db', name: 'three' })
    },
    act: daemon => daemon.execute('checkpoint-delete', { machine: 'db', name: 'three' }),
    state: async daemon => (await daemon.execute<{ name: string }[]>('query-checkpoints')).map(({ name }) => name),
  },
})
