// A group of incremental backups: all complete, or every bitmap is given back, whatever fails and whenever the daemon is killed; the command that came
// to nothing can be said again as it is.

import { readFile, writeFile } from 'node:fs/promises'
import { allOrNothing, DISKS, SIZE, type Daemon } from '../helpers/all-or-nothing.ts'

const target = (daemon: Daemon, disk: string) => `${daemon.folder}/${disk}-backup.raw`

/** Bytes that are dirty. */
async function dirty(daemon: Daemon, disk: string) {
  const nodes = await daemon.execute<{ 'node-name': string; 'dirty-bitmaps'?: { name: string; count: number }[] }[]>(
    'query-named-block-nodes',
    { flat: true },
  )
  const node = nodes.find(node => node['node-name'] === `db.${disk}`)
  return node?.['dirty-bitmaps']?.find(({ name }) => name === 'increment')?.count ?? 'no bitmap'
}

allOrNothing({
  'incremental backups of two disks that complete together': {
    async begin(daemon) {
      for (const disk of DISKS) {
        await daemon.execute('block-dirty-bitmap-add', { node: `db.${disk}`, name: 'increment', persistent: true })
        await using guest = await daemon.nbd(`db/${disk}`)
        await writeFile(target(daemon, disk), await guest.read(0, SIZE))
      }
    },
    async act(daemon) {
      for (const disk of DISKS) {
        const file = { driver: 'file', filename: target(daemon, disk) }
        await daemon.execute('blockdev-add', { driver: 'raw', 'node-name': `to-${disk}`, file })
      }
      try {
        await daemon.execute('transaction', {
          properties: { 'completion-mode': 'grouped' },
          actions: DISKS.map(disk => ({
            type: 'blockdev-backup',
            data: {
              'job-id': `backup-${disk}`,
              device: `db.${disk}`,
              target: `to-${disk}`,
              sync: 'incremental',
              bitmap: 'increment',
            },
          })),
        })
        const ended = await Promise.allSettled(DISKS.map(disk => daemon.over(`backup-${disk}`)))
        for (const one of ended) if (one.status === 'rejected') throw one.reason
      } finally {
        for (const disk of DISKS) await daemon.execute('blockdev-del', { 'node-name': `to-${disk}` })
      }
    },
    async wrong(daemon) {
      const wrong: string[] = []
      for (const disk of DISKS) {
        const count = await dirty(daemon, disk)
        if (count === 'no bitmap') wrong.push(`the bitmap of ${disk} is gone`)
        // What was taken away from the bitmap is in the backups, in all of them.
        if (count !== 0) continue
        for (const other of DISKS) {
          await using guest = await daemon.nbd(`db/${other}`)
          if (!(await guest.read(0, SIZE)).equals(await readFile(target(daemon, other))))
            wrong.push(`the bitmap of ${disk} is clear, and the backup of ${other} is not whole`)
        }
      }
      return wrong
    },
  },
})
