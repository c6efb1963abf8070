// Options of nodes that do not go together, when they are opened and opened anew, and what the lists show while jobs work.

import { event, exportDisk, job, open, qmp, startServer, type Scenario } from '../../helpers/scenario.ts'

const qcow2 = { size: '4M', format: 'qcow2' } as const
const file = (name: string) => ({ driver: 'file', 'node-name': `${name} file`.replaceAll(/\W/g, '-'), filename: `$D/${name}` })
const add = (args: object) => qmp('blockdev-add', args)
const reopen = (options: object) => qmp('blockdev-reopen', { options: [options] })
const over = (name: string, backing: string | null, more: object = {}) =>
  add({ driver: 'qcow2', 'node-name': name, file: file(`${name}.qcow2`), backing, ...more })
const graph = qmp('query-named-block-nodes', { flat: true }, { ignoring: ['image', 'file', 'backing_file'] })
/** How large a qcow2 image's file is at a moment is each one's own affair. */
const named = qmp('query-named-block-nodes', { flat: true }, { ignoring: ['virtual-size'] })
const b = { driver: 'qcow2', 'node-name': 'b', file: 'b-qcow2-file', backing: 'a' }
const raw = { driver: 'raw', 'node-name': 'r', file: 'r-raw-file' }

const refused = (node: string) => ({
  error: {
    desc: `Permission conflict on node '${node}': permissions 'consistent read' are both required by block export '${node}' (uses node '${node}' as 'root' child) and unshared by commit job 'j' (uses node '${node}' as 'intermediate node' child).`,
  },
})
const unnamed = 'QEMU speaks of an unnamed block device; ours says what it is'

const CACHES = [
  { 'cache-size': 65536, 'l2-cache-size': 65536, 'refcount-cache-size': 65536 },
  { 'cache-size': 1, 'l2-cache-size': 65536 },
  { 'cache-size': 1, 'refcount-cache-size': 65536 },
  { 'l2-cache-entry-size': 1000 },
  { 'l2-cache-entry-size': 256 },
  { 'l2-cache-entry-size': 131072 },
  { 'l2-cache-size': -1 },
  { 'cache-clean-interval': 2 ** 33 },
]

export const oddOptions: readonly Scenario[] = [
  {
    title: 'options that do not go together, and what cannot be changed',
    images: {
      'a.qcow2': qcow2,
      'x.qcow2': qcow2,
      'b.qcow2': { ...qcow2, backing: 'a.qcow2' },
      'r.raw': { size: '4M', seed: 2 },
      's.raw': { size: '4M' },
    },
    steps: [
      over('a', null),
      over('b', 'a'),
      add({ ...raw, file: file('r.raw') }),
      add({ driver: 'raw', 'node-name': 's', file: file('s.raw') }),
      add({ driver: 'null-co', 'node-name': 'n' }),
      ...CACHES.flatMap(more => [
        reopen({ ...b, ...more }),
        add({ driver: 'qcow2', 'node-name': 'x', file: file('x.qcow2'), ...more }),
      ]),
      reopen({ ...raw, offset: -1 }),
      add({ driver: 'raw', 'node-name': 'x', file: 's', offset: -1 }),
      reopen({ ...b, driver: 'raw' }),
      reopen({ driver: 'raw', 'node-name': 'b', file: 'b-qcow2-file' }),
      reopen({ ...b, 'data-file': 's' }),
      reopen({ ...b, file: { ...file('b.qcow2'), filename: '$D/a.qcow2' } }),
      reopen({ ...b, backing: { driver: 'qcow2', file: 'a-qcow2-file' } }),
      reopen({ driver: 'null-co', 'node-name': 'n', 'read-zeroes': true }),
      graph,
      reopen(b),
      qmp(
        'blockdev-add',
        { driver: 'raw', 'node-name': 'x', file: 's', size: 1000 },
        { differs: { ours: { return: {} }, because: 'a part of a file may have any size; QEMU counts in sectors' } },
      ),
    ],
  },
  {
    title: 'a stream above another one',
    images: { 'a.qcow2': qcow2, 'b.qcow2': { ...qcow2, backing: 'a.qcow2' }, 'c.qcow2': { ...qcow2, backing: 'b.qcow2' } },
    steps: [
      over('a', null),
      over('b', 'a'),
      over('c', 'b'),
      qmp('block-stream', { 'job-id': 'j', device: 'b', 'filter-node-name': 'filter', 'auto-finalize': false }),
      event('BLOCK_JOB_PENDING'),
      ...[{ 'base-node': 'b' }, { 'base-node': 'a' }, {}].map(which =>
        qmp('block-stream', { 'job-id': 'k', device: 'c', ...which }),
      ),
      graph,
      qmp('job-cancel', { id: 'j' }),
      job('j', 'null', { ignoring: ['offset', 'len'] }),
    ],
  },
  {
    title: 'images that go, or get another one behind them, by jobs that run',
    images: {
      'a.qcow2': qcow2,
      'b.qcow2': { ...qcow2, backing: 'a.qcow2' },
      'c.qcow2': { ...qcow2, backing: 'b.qcow2' },
      'd.qcow2': { ...qcow2, backing: 'c.qcow2' },
    },
    steps: [
      over('a', null),
      over('b', 'a'),
      over('c', 'b'),
      over('d', 'c'),
      startServer,
      exportDisk('d'),
      qmp('block-stream', { 'job-id': 'j', device: 'c', 'base-node': 'b', 'auto-finalize': false }),
      event('BLOCK_JOB_PENDING'),
      ...['b', 'c'].map(top => qmp('block-commit', { 'job-id': 'k', device: 'd', 'top-node': top, 'base-node': 'a' })),
      qmp('job-finalize', { id: 'j' }),
      job('j', 'null', { ignoring: ['offset', 'len'] }),
      qmp('block-commit', { 'job-id': 'j', device: 'd', 'top-node': 'c', 'base-node': 'a', 'auto-finalize': false }),
      event('BLOCK_JOB_PENDING', {}, { ignoring: ['offset', 'len'] }),
      ...['b', 'c'].flatMap(node =>
        [true, false].map(writable => exportDisk(node, { writable }, { differs: { ours: refused(node), because: unnamed } })),
      ),
      qmp('job-finalize', { id: 'j' }),
      job('j', 'null', { ignoring: ['offset', 'len'] }),
      graph,
      qmp('blockdev-del', { 'node-name': 'c' }),
      qmp('blockdev-del', { 'node-name': 'b' }),
    ],
  },
  {
    title: 'an image that goes by a commit of the active one',
    images: { 'a.qcow2': qcow2, 'b.qcow2': { ...qcow2, backing: 'a.qcow2' }, 'c.qcow2': { ...qcow2, backing: 'b.qcow2' } },
    steps: [
      over('a', null),
      over('b', 'a'),
      over('c', 'b'),
      startServer,
      exportDisk('c'),
      qmp('block-commit', { 'job-id': 'j', device: 'c', 'top-node': 'b', 'base-node': 'a', 'auto-finalize': false }),
      event('BLOCK_JOB_PENDING', {}, { ignoring: ['offset', 'len'] }),
      named,
      qmp('job-cancel', { id: 'j' }),
      job('j', 'null', { ignoring: ['offset', 'len'] }),
      qmp('block-commit', { 'job-id': 'j', device: 'c' }),
      event('BLOCK_JOB_READY', {}, { ignoring: ['offset', 'len'] }),
      named,
      ...[true, false].map(writable => exportDisk('b', { writable }, { differs: { ours: refused('b'), because: unnamed } })),
      // What is over one of them needs it as much. The base may be read, and the active one, were it not for what it has behind it.
      ...['b', 'c'].flatMap(node => [
        qmp('blockdev-add', { driver: 'raw', 'node-name': 'over', file: node }),
        ...[true, false].map(writable => exportDisk('over', { writable })),
        qmp('block-export-del', { id: 'over' }),
        qmp('blockdev-del', { 'node-name': 'over' }),
      ]),
      exportDisk('c', { id: 'again', name: 'again' }),
      exportDisk('a', { writable: false }),
      qmp('job-complete', { id: 'j' }),
      job('j', 'null', { ignoring: ['offset', 'len'] }),
      graph,
    ],
  },
  {
    title: 'images that are read-only again after a job, unless somebody has begun to write to them, or lets nobody write',
    images: {
      'a.qcow2': qcow2,
      'b.qcow2': { ...qcow2, backing: 'a.qcow2' },
      'c.qcow2': { ...qcow2, backing: 'b.qcow2' },
      'd.qcow2': { ...qcow2, backing: 'c.qcow2' },
      's.raw': { size: '4M', scratch: true },
    },
    steps: [
      over('a', null, { 'read-only': true }),
      ...['b', 'c'].map((node, i) => over(node, ['a', 'b'][i]!, { 'read-only': true })),
      over('d', 'c'),
      open('s', 's.raw'),
      startServer,
      exportDisk('d'),
      qmp('block-commit', { 'job-id': 'j', device: 'd', 'top-node': 'b', 'base-node': 'a', 'auto-finalize': false }),
      event('BLOCK_JOB_PENDING', {}, { ignoring: ['offset', 'len'] }),
      qmp('blockdev-add', { driver: 'copy-before-write', 'node-name': 'f', file: 'c', target: 's' }),
      exportDisk('f', { writable: false }),
      qmp('job-finalize', { id: 'j' }),
      job('j', 'null', { ignoring: ['offset', 'len'] }),
      qmp('block-export-del', { id: 'f' }),
      qmp('blockdev-del', { 'node-name': 'f' }),
      qmp('block-stream', { 'job-id': 'j', device: 'c', 'base-node': 'a', 'auto-finalize': false }),
      event('BLOCK_JOB_PENDING', {}, { ignoring: ['offset', 'len'] }),
      qmp('blockdev-add', { driver: 'copy-on-read', 'node-name': 'f', file: 'c' }),
      qmp('job-finalize', { id: 'j' }),
      job('j', 'null', { ignoring: ['offset', 'len'] }),
      graph,
    ],
  },
  {
    title: 'what a backup works with is shown',
    images: { 'r.raw': { size: '4M', seed: 2 }, 's.raw': { size: '4M', scratch: true } },
    steps: [
      add({ ...raw, file: file('r.raw') }),
      add({ driver: 'raw', 'node-name': 's', file: file('s.raw') }),
      qmp('blockdev-backup', { 'job-id': 'j', device: 'r', target: 's', sync: 'full', 'auto-finalize': false }),
      event('BLOCK_JOB_PENDING'),
      {
        ...graph,
        differs: {
          ours: { return: [{ drv: 'snapshot-access' }, { drv: 'copy-before-write' }] },
          because: 'a job reads a view in scratch space, by nodes of its own; QEMU has its filter only',
        },
      },
      qmp('job-finalize', { id: 'j' }),
      job('j', 'null', { ignoring: ['offset', 'len'] }),
      graph,
    ],
  },
  {
    title: 'limits that are far too much',
    steps: [1e16, -1, 2 ** 62].map(total =>
      qmp('object-add', { 'qom-type': 'throttle-group', id: 'group', limits: { 'iops-total': total } }),
    ),
  },
]
