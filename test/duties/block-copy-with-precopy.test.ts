// Block copy: a disk that is copied and moved to its copy is in one of the two, whole, with its checkpoints, whatever fails and whenever the daemon
// is killed; and so is one whose images are pulled into it.

import { rm } from 'node:fs/promises'
import { allOrNothing, diskJobOver, type Daemon } from '../helpers/all-or-nothing.ts'

const copied = async (daemon: Daemon, more: object) => {
  const file = `${daemon.folder}/copy.qcow2`
  await rm(file, { force: true }) // it is the user's to remove what came to nothing
  await daemon.execute('disk-copy', { machine: 'db', disk: 'root', file, 'at-ready': 'pivot', ...more })
  await diskJobOver(daemon, 'root')
}

const overlay = async (daemon: Daemon) =>
  daemon.execute('disk-snapshot', { machine: 'db', disks: [{ disk: 'root', file: `${daemon.folder}/over.qcow2` }] })

allOrNothing({
  'disk-copy in full, and pivot': { act: daemon => copied(daemon, {}) },
  'disk-copy of the top of a chain, and pivot': {
    begin: overlay,
    act: daemon => copied(daemon, { shallow: true, 'copy-mode': 'write-blocking' }),
  },
  'disk-pull': {
    begin: overlay,
    async act(daemon) {
      await daemon.execute('disk-pull', { machine: 'db', disk: 'root' })
      await diskJobOver(daemon, 'root')
    },
  },
  'disk-pull down to a base, which stays behind the disk': {
    steps: 1,
    async begin(daemon) {
      await overlay(daemon)
      await daemon.execute('disk-snapshot', { machine: 'db', disks: [{ disk: 'root', file: `${daemon.folder}/top.qcow2` }] })
    },
    async act(daemon) {
      await daemon.execute('disk-pull', { machine: 'db', disk: 'root', base: `${daemon.folder}/root.qcow2` })
      await diskJobOver(daemon, 'root')
    },
  },
})
