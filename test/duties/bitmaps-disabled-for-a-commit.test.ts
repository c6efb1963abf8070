// Bitmaps and commits: what changed since each checkpoint reads the same before a commit, during it, and after it, whatever fails and whenever the
// daemon is killed.

import { allOrNothing, diskJobOver, type Daemon } from '../helpers/all-or-nothing.ts'

const overlays = async (daemon: Daemon) => {
  for (const name of ['middle', 'top'])
    await daemon.execute('disk-snapshot', { machine: 'db', disks: [{ disk: 'root', file: `${daemon.folder}/${name}.qcow2` }] })
  await daemon.execute('checkpoint-create', { machine: 'db', name: 'late' })
}

const committed = async (daemon: Daemon, more: object) => {
  await daemon.execute('disk-commit', { machine: 'db', disk: 'root', ...more })
  await diskJobOver(daemon, 'root')
}

/** The images of the disk's chain. */
const chain = async (daemon: Daemon) => {
  const [machine] = await daemon.execute<{ disks: { node: string }[] }[]>('query-machines')
  const nodes = await daemon.execute<{ 'node-name': string; image: Image }[]>('query-named-block-nodes')
  const files: string[] = []
  const root = nodes.find(node => node['node-name'] === machine!.disks[0]!.node)
  for (let image: Image | undefined = root?.image; image; image = image['backing-image'])
    files.push(/\w+\.qcow2/.exec(image.filename)![0]) // its header may name another one behind it than there is, which reads the same
  return files
}

interface Image {
  readonly filename: string
  readonly 'backing-image'?: Image
}

allOrNothing({
  'disk-commit of the active image, and pivot, while guests write': {
    guests: true,
    begin: overlays,
    act: daemon => committed(daemon, { active: true, pivot: true }),
    state: chain,
  },
  'disk-commit of the active image, after one that was cancelled': {
    steps: 1,
    begin: overlays,
    async act(daemon) {
      await daemon.execute('disk-commit', { machine: 'db', disk: 'root', active: true, speed: 1 })
      await daemon.execute('disk-abort', { machine: 'db', disk: 'root' })
      await committed(daemon, { active: true, pivot: true })
    },
    state: chain,
  },
  'disk-commit of an image in the middle': {
    steps: 1,
    begin: overlays,
    act: daemon => committed(daemon, { top: `${daemon.folder}/middle.qcow2` }),
    state: chain,
  },
})
