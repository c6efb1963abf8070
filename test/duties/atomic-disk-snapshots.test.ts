// Atomic disk snapshots: of several disks at one instant, made or reused, and a checkpoint, made and deleted; at each step all of them or none, whatever fails
// and whenever the daemon is killed.

import { allOrNothing, DISKS, type Daemon } from '../helpers/all-or-nothing.ts'
import { qemuImg } from '../helpers/qemu.ts'

const overlay = (daemon: Daemon, disk: string) => `${daemon.folder}/${disk}-over.qcow2`

allOrNothing({
  'disk-snapshot of both disks': {
    act: daemon =>
      daemon.execute('disk-snapshot', { machine: 'db', disks: DISKS.map(disk => ({ disk, file: overlay(daemon, disk) })) }),
  },
  'disk-snapshot onto images that are there': {
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
  'a checkpoint of both disks': {
    act: daemon => daemon.execute('checkpoint-create', { machine: 'db', name: 'three' }),
    state: async daemon => (await daemon.execute<{ name: string }[]>('query-checkpoints')).map(({ name }) => name),
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
