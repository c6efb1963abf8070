// Jobs that make their target themselves (drive-backup, drive-mirror), and what a backup may be told of how it copies.

import { event, job, open, qmp, transaction, type Scenario, type Step, type StepOptions } from '../../helpers/scenario.ts'

const images = { 'disk.raw': { size: '4M', seed: 1 }, 'image.qcow2': { size: '4M', format: 'qcow2', seed: 2 } } as const
const backup = (more: object = {}, options?: StepOptions) =>
  qmp('drive-backup', { 'job-id': 'j', device: 'disk', target: '$D/new.img', sync: 'full', ...more }, options)
const mirror = (more: object = {}) =>
  qmp('drive-mirror', { 'job-id': 'j', device: 'disk', target: '$D/new.img', sync: 'full', ...more })
const copy = (more: object = {}, options?: StepOptions) =>
  qmp('blockdev-backup', { 'job-id': 'j', device: 'disk', target: 'target', sync: 'full', ...more }, options)
const completed = [event('BLOCK_JOB_COMPLETED'), job('j', 'null')]
const cancelled = [event('BLOCK_JOB_CANCELLED'), job('j', 'null')]
const same = (one: string, other: string, ...formats: [string, string]): Step => ({
  kind: 'tool',
  tool: 'qemu-img',
  args: ['compare', '-U', '-f', formats[0], '-F', formats[1], `$D/${one}`, `$D/${other}`],
})
const infoOf = (image: string): Step => ({
  kind: 'tool',
  tool: 'qemu-img',
  args: ['info', '-U', '--output=json', `$D/${image}`],
  ignoring: ['children'],
})
const jobs = qmp('query-jobs')

const blank = {
  ours: { error: { desc: 'Compression is not supported for this drive' } },
  because: "QEMU's ends in a blank, before the name of a device that it has not",
}
const noEvents = {
  ours: [{ data: { status: 'created' } }, { data: { status: 'running' } }],
  because: 'QEMU tells of the job as created and gone; ours looks at the options before there is a job',
}

export const drives: readonly Scenario[] = [
  {
    title: 'drive-backup makes the image that it copies to',
    images,
    steps: [
      open('disk', 'disk.raw'),
      open('image', 'image.qcow2'),
      backup({ device: 'nope' }),
      qmp('drive-backup', { device: 'disk', target: '$D/new.img', sync: 'full' }),
      backup({ format: 'nope' }),
      backup({ mode: 'nope' }),
      backup({ target: '/nope/x' }),
      backup({ sync: 'incremental' }),
      backup({ sync: 'bitmap', bitmap: 'x' }),
      backup({ compress: true, format: 'raw' }, { differs: blank }),
      backup({ speed: -1 }),
      backup(),
      event('BLOCK_JOB_COMPLETED', {}, { differs: noEvents }),
      job('j', 'null'),
      same('disk.raw', 'new.img', 'raw', 'raw'),
      backup({ mode: 'existing', format: 'raw' }),
      ...completed,
      backup({ target: '$D/small.qcow2', format: 'qcow2', compress: true }),
      ...completed,
      same('disk.raw', 'small.qcow2', 'raw', 'qcow2'),
      backup({ device: 'image', target: '$D/top.qcow2', sync: 'top' }),
      ...completed,
      infoOf('top.qcow2'),
      backup({ device: 'image', target: '$D/none.qcow2', sync: 'none', 'auto-dismiss': false }),
      jobs,
      qmp('job-cancel', { id: 'j' }),
      event('BLOCK_JOB_CANCELLED'),
      job('j', 'concluded'),
      qmp('job-dismiss', { id: 'j' }),
      job('j', 'null'),
      infoOf('none.qcow2'),
      transaction([
        ['drive-backup', { 'job-id': 'j', device: 'disk', target: '$D/with.qcow2', sync: 'full', format: 'qcow2' }],
        ['block-dirty-bitmap-add', { node: 'disk', name: 'b' }],
      ]),
      job('j', 'null'),
      same('disk.raw', 'with.qcow2', 'raw', 'qcow2'),
      transaction([
        ['drive-backup', { 'job-id': 'j', device: 'disk', target: '$D/not.qcow2', sync: 'full', format: 'qcow2' }],
        ['abort'],
      ]),
      jobs,
    ],
  },
  {
    title: 'drive-mirror makes the image that it moves to',
    images,
    steps: [
      open('disk', 'disk.raw'),
      open('image', 'image.qcow2'),
      mirror({ device: 'nope' }),
      qmp('drive-mirror', { device: 'disk', target: '$D/new.img', sync: 'full' }),
      mirror({ format: 'nope' }),
      mirror({ mode: 'nope' }),
      mirror({ target: '/nope/x' }),
      mirror({ sync: 'incremental' }),
      mirror({ sync: 'bitmap' }),
      mirror({ granularity: 100 }),
      mirror({ 'buf-size': -1 }),
      mirror({ replaces: 'nope' }),
      mirror({ replaces: 'nope', 'node-name': 'new' }),
      mirror({ 'node-name': '1bad' }),
      mirror({ 'node-name': 'disk' }),
      mirror({ 'node-name': 'new' }),
      event('BLOCK_JOB_READY'),
      qmp('query-named-block-nodes', { flat: true }, { ignoring: ['virtual-size'] }),
      jobs,
      qmp('job-complete', { id: 'j' }),
      ...completed,
      same('disk.raw', 'new.img', 'raw', 'raw'),
      mirror({ device: 'image', target: '$D/copy.qcow2', 'copy-mode': 'write-blocking' }),
      event('BLOCK_JOB_READY'),
      qmp('block-job-cancel', { device: 'j' }),
      ...completed,
      infoOf('copy.qcow2'),
      same('image.qcow2', 'copy.qcow2', 'qcow2', 'qcow2'),
      mirror({ device: 'image', target: '$D/none.qcow2', sync: 'none', format: 'qcow2' }),
      event('BLOCK_JOB_READY'),
      qmp('block-job-cancel', { device: 'j', force: true }),
      ...cancelled,
      infoOf('none.qcow2'),
    ],
  },
  {
    title: 'a backup is told how to copy',
    images: {
      'disk.raw': { size: '4M', seed: 1 },
      'target.raw': { size: '4M' },
      'small.qcow2': { size: '4M', format: 'qcow2' },
      'large.qcow2': { size: '4M', format: 'qcow2', options: 'cluster_size=1M' },
    },
    steps: [
      open('disk', 'disk.raw'),
      open('target', 'target.raw'),
      open('small', 'small.qcow2'),
      open('large', 'large.qcow2'),
      ...[{ 'max-workers': 0 }, { 'max-workers': 2 ** 31 }, { 'max-chunk': -1 }, { 'max-chunk': 1 }, { nope: 1 }].map(perf =>
        copy({ 'x-perf': perf }),
      ),
      copy({ 'x-perf': { 'max-workers': 0, 'max-chunk': -1 }, speed: -1 }),
      copy({ target: 'large', 'x-perf': { 'max-chunk': 65536 } }),
      copy({ target: 'large', 'x-perf': { 'max-chunk': 1 << 20 } }),
      ...completed,
      copy({ 'x-perf': { 'max-chunk': 65536, 'use-copy-range': true, 'max-workers': 3 }, 'on-target-error': 'auto' }),
      ...completed,
      copy({ compress: true }, { differs: blank }),
      copy({ compress: true, target: 'small', 'on-source-error': 'auto' }),
      ...completed,
    ],
  },
]
