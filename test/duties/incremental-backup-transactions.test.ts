// Incremental backup transactions: a group of backups completes, or every bitmap is given back, whatever fails and whenever the daemon is killed; the command that came
// to nothing can be said again as it is.

import { readFile, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
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

async function begin(daemon: Daemon) {
  for (const disk of DISKS) {
    await daemon.execute('block-dirty-bitmap-add', { node: `db.${disk}`, name: 'increment', persistent: true })
    await using guest = await daemon.nbd(`db/${disk}`)
    await writeFile(target(daemon, disk), await guest.read(0, SIZE))
  }
}

/** A group of two. `work` sees to its end. */
async function backUp(daemon: Daemon, work: () => Promise<void>, speed = 0) {
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
          ...(disk === 'data' && { speed }),
        },
      })),
    })
    await work()
  } finally {
    for (const disk of DISKS) await daemon.execute('blockdev-del', { 'node-name': `to-${disk}` })
  }
}

const ended = (daemon: Daemon) => Promise.allSettled(DISKS.map(disk => daemon.over(`backup-${disk}`)))

async function together(daemon: Daemon) {
  for (const one of await ended(daemon)) if (one.status === 'rejected') throw one.reason
}

/** The other one is slow. Where it was quicker all the same, or something has failed, there is nothing to cancel. */
async function cancelled(daemon: Daemon) {
  for (;;) {
    const jobs = await daemon.execute<{ id: string; status: string }[]>('query-jobs')
    const waiting = jobs.find(({ id }) => id === 'backup-root')
    if (waiting?.status === 'waiting') await daemon.execute('job-cancel', { id: 'backup-root' })
    if (!waiting || waiting.status === 'waiting') break
    await sleep(5)
  }
  await ended(daemon)
}

/** One of them may be over by then, because the other was cancelled. */
async function allCancelled(daemon: Daemon) {
  for (const disk of DISKS) {
    try {
      await daemon.execute('job-cancel', { id: `backup-${disk}` })
    } catch (error) {
      if (!/Job not found|cannot accept command verb/.test(String(error))) throw error
    }
  }
  await ended(daemon)
}

async function wrong(daemon: Daemon) {
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
}

allOrNothing({
  'incremental backups of two disks that complete together': {
    begin,
    act: daemon => backUp(daemon, () => together(daemon)),
    wrong,
  },
  'the same, after groups that were cancelled as a whole, and while one of it waited for the other': {
    steps: 1,
    begin,
    async act(daemon) {
      await backUp(daemon, () => allCancelled(daemon), 1)
      await backUp(daemon, () => cancelled(daemon), 1)
      await backUp(daemon, () => together(daemon))
    },
    wrong,
  },
})
