// Drive transactions: what a manager puts together step by step, or says in one command, happens altogether or not at all, whatever fails and
// whenever the daemon is killed.

import { readFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { allOrNothing, DISKS, SIZE, type Daemon } from '../helpers/all-or-nothing.ts'
import { qemuImg } from '../helpers/qemu.ts'

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

/** Images that are there, as nodes for as long as the work takes: nobody has to use them before. */
async function withNodes(
  daemon: Daemon,
  nodes: readonly { name: string; driver: string; file: string }[],
  work: () => Promise<unknown>,
) {
  for (const { name, driver, file } of nodes)
    await daemon.execute('blockdev-add', {
      driver,
      'node-name': name,
      ...(driver === 'qcow2' && { backing: null }),
      file: { driver: 'file', filename: `${daemon.folder}/${file}` },
    })
  try {
    await work()
  } catch (error) {
    for (const { name } of nodes) await daemon.execute('blockdev-del', { 'node-name': name })
    throw error
  }
}

/** What still runs is cancelled. */
async function allOver(daemon: Daemon) {
  for (;;) {
    const jobs = await daemon.execute<{ id: string; status: string }[]>('query-jobs')
    if (jobs.length === 0) return
    const running = jobs.find(({ status }) => ['running', 'ready', 'waiting'].includes(status))
    if (running) await daemon.execute('job-cancel', { id: running.id })
    await sleep(5)
  }
}

const isReady = async (daemon: Daemon, id: string) => {
  for (;;) {
    const jobs = await daemon.execute<{ id: string; status: string; error?: string }[]>('query-jobs')
    const job = jobs.find(job => job.id === id)
    if (!job || job.error !== undefined || job.status === 'concluded') throw new Error(job?.error ?? `job ${id} is over`)
    if (job.status === 'ready') return
    await sleep(5)
  }
}

allOrNothing({
  'a group snapshot, put together step by step': {
    steps: 1,
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
    steps: 1,
    act: daemon =>
      daemon.execute('transaction', {
        actions: [
          ...snapshots(daemon).map(data => ({ type: 'blockdev-snapshot-sync', data })),
          { type: 'block-dirty-bitmap-add', data: { node: 'root-over', name: 'added', persistent: true } },
        ],
      }),
  },
  'bitmaps of two disks in one command': {
    steps: 1,
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
  'blockdev-snapshot of both disks onto nodes that are there': {
    steps: 1,
    async begin({ folder }) {
      for (const disk of DISKS)
        await qemuImg(
          'create',
          '-q',
          '-f',
          'qcow2',
          '-b',
          `${folder}/${disk}.qcow2`,
          '-F',
          'qcow2',
          `${folder}/${disk}-over.qcow2`,
        )
    },
    act: daemon => {
      const nodes = DISKS.map(disk => ({ name: `${disk}-over`, driver: 'qcow2', file: `${disk}-over.qcow2` }))
      return withNodes(daemon, nodes, () =>
        daemon.execute('transaction', {
          actions: DISKS.map(disk => ({ type: 'blockdev-snapshot', data: { node: `db.${disk}`, overlay: `${disk}-over` } })),
        }),
      )
    },
  },
  'an image that is created, and put over a disk': {
    steps: 1,
    async act(daemon) {
      const filename = `${daemon.folder}/made.qcow2`
      const create = async (options: object) => {
        await daemon.execute('blockdev-create', { 'job-id': 'create', options })
        for (;;) {
          const jobs = await daemon.execute<{ id: string; status: string; error?: string }[]>('query-jobs')
          const job = jobs.find(({ id }) => id === 'create')
          if (job?.status !== 'concluded') continue
          await daemon.execute('job-dismiss', { id: 'create' })
          if (job.error !== undefined) throw new Error(job.error)
          return
        }
      }
      await create({ driver: 'file', filename, size: 0 })
      await create({ driver: 'qcow2', file: { driver: 'file', filename }, size: SIZE })
      await withNodes(daemon, [{ name: 'made', driver: 'qcow2', file: 'made.qcow2' }], () =>
        daemon.execute('blockdev-snapshot', { node: 'db.root', overlay: 'made' }),
      )
    },
  },
  'blockdev-reopen onto another image, and snapshots, at one instant': {
    steps: 1,
    async begin({ folder }) {
      for (const name of ['one', 'other']) await qemuImg('create', '-q', '-f', 'raw', `${folder}/${name}.raw`, String(SIZE))
    },
    async act(daemon) {
      const fileOf = async () => {
        const nodes = await daemon.execute<{ 'node-name': string; file: string }[]>('query-named-block-nodes', { flat: true })
        return nodes.find(node => node['node-name'] === 'lone')?.file.slice(daemon.folder.length + 1)
      }
      const other = { driver: 'file', 'node-name': 'other', filename: `${daemon.folder}/other.raw` }
      await daemon.execute('blockdev-add', other)
      try {
        await withNodes(daemon, [{ name: 'lone', driver: 'raw', file: 'one.raw' }], async () => {
          const [done] = await Promise.allSettled([
            daemon.execute('transaction', {
              actions: [
                { type: 'blockdev-reopen', data: { options: [{ driver: 'raw', 'node-name': 'lone', file: 'other' }] } },
                ...snapshots(daemon).map(data => ({ type: 'blockdev-snapshot-sync', data })),
              ],
            }),
          ])
          // What fails behind the instant has happened all the same.
          const [moved, [machine]] = [await fileOf(), await daemon.execute<{ disks: { image: string }[] }[]>('query-machines')]
          const isSnapshot = machine!.disks.every(({ image }) => image.endsWith('-over.qcow2'))
          if (moved !== (isSnapshot ? 'other.raw' : 'one.raw')) throw new Error(`the node is in ${moved}`)
          if (done.status === 'rejected') throw done.reason
        })
      } finally {
        const nodes = await daemon.execute<{ 'node-name': string }[]>('query-named-block-nodes', { flat: true })
        for (const name of ['lone', 'other'])
          if (nodes.some(node => node['node-name'] === name)) await daemon.execute('blockdev-del', { 'node-name': name })
      }
    },
  },
  'blockdev-mirror of both disks from one instant, and both pivot, while guests write': {
    steps: 1,
    guests: true,
    async begin({ folder }) {
      for (const disk of DISKS) await qemuImg('create', '-q', '-f', 'qcow2', `${folder}/${disk}-copy.qcow2`, String(SIZE))
    },
    async act(daemon) {
      const nodes = DISKS.map(disk => ({ name: `${disk}-copy`, driver: 'qcow2', file: `${disk}-copy.qcow2` }))
      await withNodes(daemon, nodes, async () => {
        try {
          await daemon.execute('transaction', {
            properties: { 'completion-mode': 'grouped' },
            actions: DISKS.map(disk => ({
              type: 'blockdev-mirror',
              data: { 'job-id': `copy-${disk}`, device: `db.${disk}`, target: `${disk}-copy`, sync: 'full' },
            })),
          })
          for (const disk of DISKS) await isReady(daemon, `copy-${disk}`)
          for (const disk of DISKS) await daemon.execute('block-job-complete', { device: `copy-${disk}` })
          for (const one of await Promise.allSettled(DISKS.map(disk => daemon.over(`copy-${disk}`))))
            if (one.status === 'rejected') throw one.reason
        } finally {
          await allOver(daemon)
        }
      })
    },
  },
  'blockdev-mirror of both disks from one instant, left as copies': {
    steps: 1,
    async begin({ folder }) {
      for (const disk of DISKS) await qemuImg('create', '-q', '-f', 'raw', `${folder}/${disk}-copy.raw`, String(SIZE))
    },
    async act(daemon) {
      const nodes = DISKS.map(disk => ({ name: `${disk}-copy`, driver: 'raw', file: `${disk}-copy.raw` }))
      const copies = async () => {
        await daemon.execute('transaction', {
          properties: { 'completion-mode': 'grouped' },
          actions: DISKS.map(disk => ({
            type: 'blockdev-mirror',
            data: { 'job-id': `copy-${disk}`, device: `db.${disk}`, target: `${disk}-copy`, sync: 'full' },
          })),
        })
        for (const disk of DISKS) await isReady(daemon, `copy-${disk}`)
        for (const disk of DISKS) await daemon.execute('block-job-cancel', { device: `copy-${disk}` })
        for (const disk of DISKS) await daemon.over(`copy-${disk}`)
      }
      await withNodes(daemon, nodes, async () => {
        try {
          await copies()
        } finally {
          await allOver(daemon)
        }
      })
      for (const disk of DISKS) {
        await daemon.execute('blockdev-del', { 'node-name': `${disk}-copy` })
        await using guest = await daemon.nbd(`db/${disk}`)
        if (!(await guest.read(0, SIZE)).equals(await readFile(`${daemon.folder}/${disk}-copy.raw`)))
          throw new Error(`the copy of ${disk} is not whole`)
      }
    },
  },
})
