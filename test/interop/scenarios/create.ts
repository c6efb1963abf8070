// blockdev-create: files and qcow2 images, what is wrong with their options, and the job that makes them.

import { job, open, qmp, type Scenario, type Step } from '../../helpers/scenario.ts'

const jobs = qmp('query-jobs')
const create = (options: object, id = 'c') => qmp('blockdev-create', { 'job-id': id, options })
const info = (name: string, format: string): Step => ({
  kind: 'tool',
  tool: 'qemu-img',
  args: ['info', '-U', '-f', format, '--output=json', `$D/${name}`],
  ignoring: ['actual-size'],
})
const check = (name: string): Step => ({ kind: 'tool', tool: 'qemu-img', args: ['check', '-q', '-f', 'qcow2', `$D/${name}`] })

/** It is done, well or not, and what `query-jobs` says of it. */
const done = [job('c', 'concluded'), jobs, qmp('query-block-jobs'), qmp('job-dismiss', { id: 'c' }), job('c', 'null')]
const made = (options: object) => [create(options), ...done]

const file = (name: string, size: number, more: object = {}) => ({ driver: 'file', filename: `$D/${name}`, size, ...more })
const qcow2 = (more: object = {}) => ({ driver: 'qcow2', file: 'file', size: 8 << 20, ...more })
const MADE: readonly object[] = [
  {},
  { version: 'v2', 'cluster-size': 4096 },
  { 'cluster-size': 2 << 20, 'refcount-bits': 1, 'lazy-refcounts': true },
  { 'extended-l2': true, 'compression-type': 'zstd' },
  { 'backing-file': 'not-there.raw', 'backing-fmt': 'raw' },
  { size: 0 },
]
const WRONG: readonly object[] = [
  { file: 'nope' },
  { size: 1000 },
  { 'cluster-size': 1000 },
  { 'cluster-size': 4 << 20 },
  { 'refcount-bits': 3 },
  { version: 'v2', 'lazy-refcounts': true },
  { version: 'v2', 'refcount-bits': 8 },
  { version: 'v2', 'compression-type': 'zstd' },
  { 'backing-fmt': 'raw' },
  { preallocation: 'metadata', 'backing-file': 'x', 'backing-fmt': 'raw' },
  { 'data-file-raw': true },
  { 'extended-l2': true, 'cluster-size': 4096 },
]

const sameFile = {
  ours: { return: [{ error: /'file' and 'data-file' are both node 'file'/ }] },
  because: 'an image whose data would be written over it is not begun; QEMU leaves one that is half made',
}

export const creations: readonly Scenario[] = [
  {
    title: 'a file is made, emptied, and set space aside for',
    steps: [
      ...made(file('a.raw', 1 << 20)),
      info('a.raw', 'raw'),
      ...made(file('a.raw', 1 << 16, { preallocation: 'full' })),
      info('a.raw', 'raw'),
      ...made(file('b.raw', 1 << 16, { preallocation: 'falloc' })),
      info('b.raw', 'raw'),
      ...made(file('c.raw', 1 << 16, { preallocation: 'metadata' })),
      ...made(file('nope/c.raw', 1 << 16)),
      ...made({ driver: 'file', filename: '', size: 1 }),
      create({ driver: 'file', filename: '$D/a.raw' }),
      create({ driver: 'file', filename: '$D/a.raw', size: 1 << 16, bogus: 1 }),
      create(file('a.raw', 1 << 16), '1c'),
      jobs,
    ],
  },
  {
    title: 'qcow2 images are made with their options',
    images: { 'a.qcow2': { size: '0', scratch: true } },
    steps: [
      qmp('blockdev-add', { driver: 'file', 'node-name': 'file', filename: '$D/a.qcow2', discard: 'unmap' }),
      ...MADE.flatMap(options => [...made(qcow2(options)), info('a.qcow2', 'qcow2')]),
      ...made(qcow2({ file: { driver: 'file', filename: '$D/a.qcow2' } })),
      info('a.qcow2', 'qcow2'),
      qmp('blockdev-del', { 'node-name': 'file' }),
      open('disk', 'a.qcow2'),
      qmp('query-named-block-nodes', { flat: true }, { ignoring: ['virtual-size'] }),
      qmp('blockdev-del', { 'node-name': 'disk' }),
      check('a.qcow2'),
    ],
  },
  {
    title: 'what is wrong with a new qcow2 image is told in the job',
    images: { 'a.qcow2': { size: '0', scratch: true } },
    steps: [
      qmp('blockdev-add', { driver: 'file', 'node-name': 'file', filename: '$D/a.qcow2' }),
      ...WRONG.flatMap(options => made(qcow2(options))),
      create(qcow2({ 'data-file': 'file' })),
      job('c', 'concluded'),
      qmp('query-jobs', {}, { differs: sameFile }),
      qmp('job-dismiss', { id: 'c' }),
      job('c', 'null'),
      create(qcow2({ version: 'v4' })),
      create({ driver: 'qcow2', file: 'file' }),
      create({ driver: 'nope' }),
      ...['raw', 'nbd', 'host_device', 'throttle'].flatMap(driver => [create({ driver }), create({ driver, size: 1 })]),
      ...['size', 'cluster-size', 'refcount-bits'].flatMap(name =>
        [null, '1M', 1.5].map(value => create(qcow2({ [name]: value }))),
      ),
      ...made(qcow2({ size: 0 })),
      check('a.qcow2'),
      jobs,
    ],
  },
  {
    title: 'a node that is in use is not made anew, and the job has nothing that it could be told',
    images: { 'a.qcow2': { size: '8M', format: 'qcow2' } },
    steps: [
      qmp('blockdev-add', { driver: 'file', 'node-name': 'file', filename: '$D/a.qcow2' }),
      qmp('blockdev-add', { driver: 'qcow2', 'node-name': 'disk', file: 'file' }),
      create(qcow2()),
      job('c', 'concluded'),
      jobs,
      create(qcow2()),
      qmp('job-cancel', { id: 'c' }),
      qmp('job-complete', { id: 'c' }),
      qmp('job-pause', { id: 'c' }),
      qmp('block-job-cancel', { device: 'c' }),
      qmp('block-job-dismiss', { id: 'c' }),
      qmp('job-dismiss', { id: 'c' }),
    ],
  },
]
