// block-commit where an image cannot be read or written, and what may be done meanwhile with a disk of which images are committed.

import { content, event, exportDisk, guest, job, qmp, startServer, type Scenario } from '../../helpers/scenario.ts'

const MiB = 1 << 20
const qcow2 = { size: '4M', format: 'qcow2' } as const
const images = {
  'base.raw': { size: '4M', seed: 6 },
  'mid.qcow2': { ...qcow2, backing: 'base.raw' },
  'top.qcow2': { ...qcow2, backing: 'mid.qcow2' },
} as const
type Image = 'base' | 'mid' | 'top'

const add = (args: object) => qmp('blockdev-add', args)
/** With names, since those without one come in each daemon's own order. */
const file = (name: string) => ({ driver: 'file', 'node-name': name, filename: `$D/${name}` })
const failing = (name: string, rule: object) => ({
  driver: 'blkdebug',
  'node-name': 'failing',
  image: file(name),
  'inject-error': [{ once: true, ...rule }],
})
const base = (rule?: object) =>
  add({ driver: 'raw', 'node-name': 'base', file: rule ? failing('base.raw', rule) : file('base.raw') })
const over = (name: Image, behind: Image, rule?: object) =>
  add({
    driver: 'qcow2',
    'node-name': name,
    file: rule ? failing(`${name}.qcow2`, rule) : file(`${name}.qcow2`),
    backing: behind,
  })
const written = (node: Image) => [exportDisk(node), guest(node, 'write -P 1 0 128k', 'write -P 2 1M 64k', 'write -P 3 3M 192k')]

/** An image below the active one, in which there is something. */
const midWritten = [
  ...written('mid'),
  qmp('block-export-del', { id: 'mid' }),
  event('BLOCK_EXPORT_DELETED'),
  over('top', 'mid'),
  exportDisk('top'),
]

const commit = (more: object) => qmp('block-commit', { 'job-id': 'j', device: 'top', ...more })
/** Where the error was: how far the two were by then differs, and the reason is told by ours only. */
const failed = event('BLOCK_JOB_ERROR', {}, { ignoring: ['reason'] })
const jobs = qmp('query-jobs', {}, { ignoring: ['current-progress', 'total-progress'] })
const blockJobs = qmp('query-block-jobs', {}, { ignoring: ['offset', 'len', 'busy'] })
const goesOn = [job('j', 'paused'), jobs, blockJobs, qmp('job-resume', { id: 'j' })]
const completed = [event('BLOCK_JOB_COMPLETED', {}, { ignoring: ['offset', 'len'] }), job('j', 'null')]
const inWords = {
  ours: { return: [{ error: 'Cannot resize fixed-size raw disks' }] },
  because: "QEMU's error is the system's; ours says what it was",
}
const notFlushed = 'what is committed is durable before its image goes; QEMU does not ask the base'
const status = (status: string) => ({ event: 'JOB_STATUS_CHANGE', data: { id: 'j', status } })
const failedToFlush = [
  ...['created', 'running'].map(status),
  { event: 'BLOCK_JOB_ERROR', data: { action: 'report', operation: 'write' } },
  status('aborting'),
  { event: 'BLOCK_JOB_COMPLETED', data: { error: /Input\/output error/ } },
  ...['concluded', 'null'].map(status),
]
const graph = qmp('query-named-block-nodes', { flat: true }, { ignoring: ['image', 'file', 'backing_file'] })
const names = ['top', 'mid', 'base'] as const

export const failingCommits: readonly Scenario[] = [
  ...(['enospc', 'stop'] as const).flatMap(onError => [
    {
      title: `an active image is committed to a base that is full for a moment: ${onError}`,
      images,
      steps: [
        base({ event: 'none', iotype: 'write', errno: 28, sector: 2048 }),
        over('mid', 'base'),
        over('top', 'mid'),
        startServer,
        ...written('top'),
        commit({ 'on-error': onError }),
        failed,
        ...goesOn,
        event('BLOCK_JOB_READY', {}, { ignoring: ['offset', 'len'] }),
        qmp('job-complete', { id: 'j' }),
        ...completed,
        content('top'),
        graph,
      ],
    },
    {
      title: `images below the active one are committed to a base that is full for a moment: ${onError}`,
      images,
      steps: [
        base({ event: 'none', iotype: 'write', errno: 28, sector: 2048 }),
        over('mid', 'base'),
        startServer,
        ...midWritten,
        commit({ 'top-node': 'mid', 'on-error': onError }),
        failed,
        ...goesOn,
        ...completed,
        content('top'),
        graph,
      ],
    },
  ]),
  {
    title: 'images below the active one are committed to a base that cannot be flushed',
    images,
    steps: [
      base({ event: 'flush_to_disk', iotype: 'flush', errno: 5 }),
      over('mid', 'base'),
      startServer,
      ...midWritten,
      commit({ 'top-node': 'mid' }),
      job('j', 'null', { differs: { ours: failedToFlush, because: notFlushed } }),
      content('top'),
    ],
  },
  ...[{}, { 'top-node': 'mid' }].map((which): Scenario => {
    return {
      title: `images are committed to a base that cannot grow: ${JSON.stringify(which)}`,
      images: { ...images, 'base.raw': { size: '2M', seed: 6 } },
      steps: [
        add({ driver: 'raw', 'node-name': 'base', size: 2 * MiB, file: file('base.raw') }),
        over('mid', 'base'),
        startServer,
        ...midWritten,
        commit({ ...which, 'on-error': 'stop', 'auto-dismiss': false }),
        job('j', 'concluded', { ignoring: ['offset', 'len', 'error'] }),
        { ...jobs, differs: inWords },
        qmp('job-dismiss', { id: 'j' }),
        content('top'),
        graph,
      ],
    }
  }),
  ...[{}, { 'top-node': 'mid' }].map((which): Scenario => {
    return {
      title: `images are committed to a base whose file was opened to be read only: ${JSON.stringify(which)}`,
      images,
      steps: [
        add({ driver: 'raw', 'node-name': 'base', 'read-only': true, file: { ...file('base.raw'), 'read-only': true } }),
        over('mid', 'base'),
        over('top', 'mid'),
        commit(which),
        jobs,
        graph,
      ],
      rest: { ours: [], because: 'QEMU tells of the job as created and gone; ours looks at the options before there is a job' },
    }
  }),
  {
    title: 'an active image is committed that cannot be read once, and the error is ignored',
    images,
    steps: [
      base(),
      over('mid', 'base'),
      over('top', 'mid', { event: 'read_aio', iotype: 'read', errno: 5 }),
      startServer,
      ...written('top'),
      commit({ 'on-error': 'ignore' }),
      failed,
      event('BLOCK_JOB_READY', {}, { ignoring: ['offset', 'len'] }),
      qmp('job-complete', { id: 'j' }),
      ...completed,
      content('top'),
      graph,
    ],
  },
  ...(['report', 'ignore', 'stop'] as const).map((onError): Scenario => {
    return {
      title: `images below the active one are committed, and one of them cannot be read once: ${onError}`,
      images,
      steps: [
        base(),
        over('mid', 'base', { event: 'read_aio', iotype: 'read', errno: 5 }),
        startServer,
        ...midWritten,
        commit({ 'top-node': 'mid', 'base-node': 'base', 'on-error': onError }),
        failed,
        ...(onError === 'stop' ? goesOn : []),
        ...completed,
        content('top'),
        graph,
      ],
    }
  }),
  {
    title: 'what may be done with a disk while images below it are committed',
    images: { ...images, 'more.qcow2': qcow2, 'target.raw': { size: '4M' } },
    steps: [
      base(),
      over('mid', 'base'),
      over('top', 'mid'),
      add({ driver: 'qcow2', 'node-name': 'more', file: file('more.qcow2'), backing: null }),
      add({ driver: 'raw', 'node-name': 'target', file: file('target.raw') }),
      startServer,
      ...written('top'),
      commit({ 'top-node': 'mid', 'base-node': 'base', 'auto-finalize': false }),
      event('BLOCK_JOB_PENDING'),
      ...names.map(node => qmp('blockdev-snapshot', { node, overlay: 'more' })),
      ...names.map(device => qmp('blockdev-backup', { 'job-id': 'k', device, target: 'target', sync: 'full' })),
      ...names.map(device => qmp('blockdev-mirror', { 'job-id': 'k', device, target: 'target', sync: 'full' })),
      ...names.map(device => qmp('block-stream', { 'job-id': 'k', device })),
      ...names.map(name => commit({ 'job-id': 'k', 'top-node': name, 'base-node': 'base' })),
      ...names.map(name => qmp('change-backing-file', { device: 'top', 'image-node-name': name, 'backing-file': 'mid.qcow2' })),
      qmp('blockdev-snapshot-internal-sync', { device: 'top', name: 'x' }),
      ...names.map(name => qmp('blockdev-del', { 'node-name': name })),
      qmp(
        'block_resize',
        { 'node-name': 'mid', size: 8 * MiB },
        {
          differs: {
            ours: { error: { desc: "Node 'mid' is busy: block device is in use by block job: commit" } },
            because: "QEMU says that device '(null)' is in use",
          },
        },
      ),
      jobs,
      qmp('job-finalize', { id: 'j' }),
      ...completed,
      content('top'),
      graph,
    ],
  },
]
