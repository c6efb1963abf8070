// Drive transactions: what a manager puts together step by step, or says in one command, happens altogether or not at all, whatever fails and
// whenever the daemon is killed.

import { allOrNothing, DISKS, type Daemon } from '../helpers/all-or-nothing.ts'

const snapshots = (daemon: Daemon) =>
  DISKS.map(disk => ({
    'node-name': `db.${disk}`,
    'snapshot-file': `${daemon.folder}/${disk}-over.qcow2`,
    'snapshot-node-name': `${disk}-over`,
  }))

const bitmaps = async (daemon: Daemon) => {
  const nodes = await daemon.execute<{ 'dirty-bitmaps'?: { name: string }[] }[]>('query-named-block-nodes', { flat: true })
  const names = nodes.flatMap(node => node['dirty-bitmaps'] ?? []).map(({ name }) => name)
  return names.filter(name => name === 'added').length
}

allOrNothing({
  'a group snapshot, put together step by step': {
    async act(daemon) {
      await daemon.execute('transaction-begin')
      try {
        for (const snapshot of snapshots(daemon)) await daemon.execute('blockdev-snapshot-sync', snapshot)
      } catch (error) {
        await daemon.execute('transaction-rollback')
        throw error
      }
      await daemon.execute('transaction-commit')
    },
  },
  'snapshots and a bitmap in one command': {
    act: daemon =>
      daemon.execute('transaction', {
        actions: [
          ...snapshots(daemon).map(data => ({ type: 'blockdev-snapshot-sync', data })),
          { type: 'block-dirty-bitmap-add', data: { node: 'root-over', name: 'added', persistent: true } },
        ],
      }),
  },
  'bitmaps of two disks in one command': {
    act: daemon =>
      daemon.execute('transaction', {
        actions: DISKS.map(disk => ({
          type: 'block-dirty-bitmap-add',
          data: { node: `db.${disk}`, name: 'added', persistent: true },
        })),
      }),
    // Each image keeps its own: after a crash one may have it without the other, as it may in QEMU. What was answered is in both.
    state: async daemon => ((await bitmaps(daemon)) === DISKS.length ? 'both' : 'not both'),
    async again(daemon) {
      for (const disk of DISKS) {
        try {
          await daemon.execute('block-dirty-bitmap-remove', { node: `db.${disk}`, name: 'added' })
        } catch (error) {
          if (!/not found/.test(String(error))) throw error
        }
      }
    },
  },
})
