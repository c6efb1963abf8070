// Block copy: a disk that is copied and moved to its copy is in one of the two, whole, with its checkpoints, whatever fails and whenever the daemon
// is killed; and so is one whose images are pulled into it.

import { allOrNothing, diskJobOver, type Daemon } from '../helpers/all-or-nothing.ts'
import { copyFile, mkdir, rm } from 'node:fs/promises'
import { qemuImg } from '../helpers/qemu.ts'

const copied = async (daemon: Daemon, more: object) => {
  const file = `${daemon.folder}/copy.qcow2`
  await rm(file, { force: true }) // it is the user's to remove what came to nothing
  await daemon.execute('disk-copy', { machine: 'db', disk: 'root', file, 'at-ready': 'pivot', ...more })
  await diskJobOver(daemon, 'root')
}

const overlay = async (daemon: Daemon) =>
  daemon.execute('disk-snapshot', { machine: 'db', disks: [{ disk: 'root', file: `${daemon.folder}/over.qcow2` }] })

allOrNothing({
  'disk-copy in full, and pivot, while guests write': { guests: true, act: daemon => copied(daemon, {}) },
  'disk-copy in full that stays a copy': {
    steps: 1,
    async act(daemon) {
      await copied(daemon, { 'at-ready': 'finish' })
      await qemuImg('compare', '-U', `${daemon.folder}/root.qcow2`, `${daemon.folder}/copy.qcow2`)
    },
  },
  'a disk is moved with all its chain, by relative names': {
    steps: 1,
    begin: overlay,
    async act(daemon) {
      const { folder } = daemon
      await mkdir(`${folder}/moved`, { recursive: true })
      await copyFile(`${folder}/root.qcow2`, `${folder}/moved/root.qcow2`)
      await qemuImg('create', '-q', '-f', 'qcow2', '-b', 'root.qcow2', '-F', 'qcow2', `${folder}/moved/over.qcow2`)
      const file = `${folder}/moved/over.qcow2`
      const wanted = { file, shallow: true, reuse: true, 'at-ready': 'pivot' }
      await daemon.execute('disk-copy', { machine: 'db', disk: 'root', ...wanted })
      await diskJobOver(daemon, 'root')
    },
  },
  'disk-copy of the top of a chain, and pivot': {
    steps: 1,
    begin: overlay,
    act: daemon => copied(daemon, { shallow: true, 'copy-mode': 'write-blocking' }),
  },
  'disk-pull': {
    steps: 1,
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
