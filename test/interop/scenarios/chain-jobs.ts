// block-stream and block-commit: what is left of a chain, in the daemon and in the headers of its images, and what is refused meanwhile.

import {
  bitmap,
  content,
  event,
  exportDisk,
  guest,
  job,
  map,
  open,
  qmp,
  startServer,
  type Scenario,
  type Step,
  type StepOptions,
} from '../../helpers/scenario.ts'

const SIZE = '4M'
/** Four images, each with data of its own in another place, and zeroes that hide what is behind. */
const images = {
  'c0.qcow2': { size: SIZE, format: 'qcow2', seed: 6 },
  'c1.qcow2': { size: SIZE, format: 'qcow2', backing: 'c0.qcow2' },
  'c2.qcow2': { size: SIZE, format: 'qcow2', backing: 'c1.qcow2' },
  'c3.qcow2': { size: SIZE, format: 'qcow2', backing: 'c2.qcow2' },
} as const
/** By one program: each is a matter of a moment. */
const fillImages = (...commands: readonly string[]): Step => ({
  kind: 'tool',
  tool: 'qemu-io',
  args: commands.flatMap(text => ['-c', text]),
})
const openImage = (name: string) => `open -o driver=qcow2 $D/${name}.qcow2`
const below = [openImage('c1'), 'write -P 1 1M 256k', 'write -z 256k 64k', 'close']
const fill = fillImages(
  ...below,
  openImage('c2'),
  'write -P 2 1088k 64k',
  'write -P 2 2M 128k',
  'write -z 320k 64k',
  'close',
  openImage('c3'),
  'write -P 3 3M 64k',
)
const file = (name: string) => ({ driver: 'file', filename: `$D/${name}.qcow2` })
const chain = (name: string, behind: object): object => ({
  driver: 'qcow2',
  'node-name': name,
  file: file(name),
  backing: behind,
})
const openChain = qmp(
  'blockdev-add',
  chain('c3', chain('c2', chain('c1', { driver: 'qcow2', 'node-name': 'c0', file: file('c0') }))),
)
const begin = [fill, openChain, startServer, exportDisk('c3')]

const tool = (args: readonly string[], options: StepOptions = {}): Step => ({ kind: 'tool', tool: 'qemu-img', args, ...options })
const info = (name: string) =>
  tool(['info', '-U', '--backing-chain', '--output=json', `$D/${name}.qcow2`], {
    // Named relative to its image here where it was so before; where it leads is the same.
    ignoring: ['actual-size', 'backing-filename', 'full-backing-filename'],
  })
const layers = (name: string) =>
  tool(['map', '-U', '--output=json', `$D/${name}.qcow2`], { ignoring: ['offset', 'filename', 'present', 'compressed'] })
const check = (name: string) => tool(['check', '-q', '-f', 'qcow2', `$D/${name}.qcow2`])
const close: readonly Step[] = [
  qmp('nbd-server-stop'),
  qmp('blockdev-del', { 'node-name': 'c3' }),
  qmp('blockdev-del', { 'node-name': 'c0' }),
  qmp('query-named-block-nodes', { flat: true }, { ignoring: ['virtual-size'] }),
  info('c3'),
  ...['c0', 'c3'].map(check),
]
const end = [...close, layers('c3')]
/** But for what images are called: relative to their image here, with the whole path or all options there. */
const nodes = qmp(
  'query-named-block-nodes',
  { flat: true },
  { ignoring: ['virtual-size', 'file', 'filename', 'backing_file', 'backing-filename', 'full-backing-filename'] },
)
const jobs = qmp('query-jobs')
const blockJobs = qmp('query-block-jobs')
const stream = (more: object = {}, options: StepOptions = {}) =>
  qmp('block-stream', { 'job-id': 'j', device: 'c3', ...more }, options)
const commit = (more: object = {}, options: StepOptions = {}) =>
  qmp('block-commit', { 'job-id': 'j', device: 'c3', ...more }, options)
const done = [event('BLOCK_JOB_COMPLETED'), job('j', 'null')]
const nameless = {
  ours: { error: { desc: /^Node '.*' is busy: block device is in use by block job: (stream|commit)$/ } },
  because: "QEMU says that device '(null)' is in use",
}

const unnamed = {
  ours: {
    error: {
      desc: /^Permission conflict on node 'f': permissions 'resize' are both required by node 'c0' .* and unshared by node '#block/,
    },
  },
  because: 'QEMU speaks of an unnamed block device; ours says what it is',
}

export const streams: readonly Scenario[] = [
  {
    title: 'all of a chain is streamed into its top',
    images,
    steps: [
      ...begin,
      stream(),
      ...done,
      content('c3'),
      nodes,
      qmp('nbd-server-stop'),
      qmp('blockdev-del', { 'node-name': 'c3' }),
      info('c3'),
      layers('c3'),
      check('c3'),
    ],
  },
  {
    title: 'a chain is streamed down to a base, while others are refused',
    images,
    steps: [
      ...begin,
      stream({ 'base-node': 'c0', 'auto-finalize': false, 'filter-node-name': 'over' }),
      event('BLOCK_JOB_PENDING'),
      jobs,
      blockJobs,
      qmp('job-complete', { id: 'j' }),
      qmp('blockdev-del', { 'node-name': 'c3' }),
      qmp('blockdev-del', { 'node-name': 'over' }),
      qmp('block_resize', { 'node-name': 'c3', size: 8 << 20 }, { differs: nameless }),
      qmp('blockdev-backup', { 'job-id': 'k', device: 'c3', target: 'c0', sync: 'none' }),
      stream({ 'job-id': 'k' }),
      commit({ 'job-id': 'k' }),
      qmp('job-finalize', { id: 'j' }),
      ...done,
      content('c3'),
      nodes,
      guest('c3', 'write -P 9 0 128k'),
      ...end,
    ],
  },
  {
    title: 'the middle of a chain is streamed, by bottom and by the name of a file',
    images,
    steps: [
      ...begin,
      stream({ device: 'c2', bottom: 'c2' }),
      ...done,
      stream({ device: 'c2', base: '$D/c0.qcow2', 'backing-file': 'c0.qcow2' }),
      ...done,
      // Nothing lies between any more, and the header says another name all the same.
      stream({ device: 'c2', 'base-node': 'c0', 'backing-file': './c0.qcow2' }),
      ...done,
      tool(['info', '-U', '--output=json', '$D/c2.qcow2'], { ignoring: ['actual-size'] }),
      content('c3'),
      nodes,
      ...end,
    ],
  },
  {
    title: 'a stream that is cancelled leaves the chain as it is',
    images,
    steps: [
      ...begin,
      stream({ speed: 1, 'auto-dismiss': false }),
      qmp('job-cancel', { id: 'j' }),
      event('BLOCK_JOB_CANCELLED', {}, { ignoring: ['offset', 'len'] }),
      job('j', 'concluded'),
      qmp('job-dismiss', { id: 'j' }),
      job('j', 'null'),
      content('c3'),
      nodes,
      ...close,
    ],
  },
  {
    title: 'what is wrong with a stream is told in order',
    images,
    steps: [
      ...begin,
      ...[
        { base: 'x', 'base-node': 'c1' },
        { bottom: 'c2', 'base-node': 'c1' },
        { base: 'x', bottom: 'c1' },
        { 'base-node': 'c3' },
        { 'base-node': 'nope' },
        { base: 'zzz' },
        { base: '$D/c3.qcow2' },
        { bottom: 'nope' },
        { device: 'c1', bottom: 'c2' },
        { 'backing-file': 'x' },
        { device: 'nope' },
        { 'on-error': 'x' },
        { 'job-id': '1j' },
      ].map(more => stream(more)),
      jobs,
    ],
  },
  {
    title: 'a file that a format writes to is not streamed, and nothing is left of it',
    images: { 'c0.qcow2': images['c0.qcow2'] },
    steps: [
      qmp('blockdev-add', { driver: 'qcow2', 'node-name': 'c0', file: { ...file('c0'), 'node-name': 'f' } }),
      stream({ device: 'f' }, { differs: unnamed }),
      jobs,
      qmp('query-named-block-nodes', { flat: true }, { ignoring: ['virtual-size'] }),
    ],
    rest: { ours: [], because: 'QEMU tells of the job as created and gone; ours looks at the options before there is a job' },
  },
  ...([28, 5] as const).flatMap(errno =>
    (errno === 28 ? (['enospc', 'ignore'] as const) : (['enospc', 'stop', 'report'] as const)).map((policy): Scenario => {
      const stops = policy === 'stop' || (policy === 'enospc' && errno === 28)
      return {
        title: `a stream into an image that cannot be written once: ${policy}, ${errno}`,
        images: { 'below.raw': { size: '4M', seed: 6 }, 'top.qcow2': { size: '4M', format: 'qcow2', backing: 'below.raw' } },
        steps: [
          open('below', 'below.raw'),
          qmp('blockdev-add', {
            driver: 'qcow2',
            'node-name': 'top',
            file: {
              driver: 'blkdebug',
              image: { driver: 'file', filename: '$D/top.qcow2' },
              'inject-error': [{ event: 'write_aio', errno, once: true }],
            },
            backing: 'below',
          }),
          stream({ device: 'top', 'on-error': policy, 'auto-dismiss': false }),
          event('BLOCK_JOB_ERROR', { operation: 'read' }, { ignoring: ['reason'] }),
          ...(stops ? [job('j', 'paused'), blockJobs, qmp('job-resume', { id: 'j' })] : []),
          job('j', 'concluded', { ignoring: ['offset', 'len'] }),
          jobs,
          qmp('job-dismiss', { id: 'j' }),
          startServer,
          exportDisk('top'),
          content('top'),
        ],
      }
    }),
  ),
]

export const commits: readonly Scenario[] = [
  {
    title: 'the middle of a chain is committed, while others are refused',
    images,
    steps: [
      ...begin,
      commit({ 'top-node': 'c2', 'base-node': 'c0', 'auto-finalize': false, 'filter-node-name': 'over' }),
      event('BLOCK_JOB_PENDING'),
      jobs,
      blockJobs,
      qmp('job-complete', { id: 'j' }),
      qmp('blockdev-del', { 'node-name': 'c2' }),
      qmp('blockdev-del', { 'node-name': 'over' }),
      qmp('block_resize', { 'node-name': 'c0', size: 8 << 20 }, { differs: nameless }),
      guest('c3', 'write -P 9 0 128k'),
      qmp('job-finalize', { id: 'j' }),
      ...done,
      content('c3'),
      nodes,
      ...close,
    ],
  },
  {
    title: 'who opens the image above in another way keeps what is behind it while that is committed',
    images,
    steps: [
      fill,
      qmp('blockdev-add', chain('c2', chain('c1', { driver: 'qcow2', 'node-name': 'c0', file: file('c0') }))),
      qmp('blockdev-add', { driver: 'qcow2', 'node-name': 'c3', file: { ...file('c3'), 'node-name': 'f' }, backing: 'c2' }),
      commit({ 'top-node': 'c2', 'auto-finalize': false }),
      event('BLOCK_JOB_PENDING'),
      ...['c0', null, 'c2'].map(backing =>
        qmp('blockdev-reopen', { options: [{ driver: 'qcow2', 'node-name': 'c3', file: 'f', backing }] }),
      ),
      qmp('job-finalize', { id: 'j' }),
      ...done,
      startServer,
      exportDisk('c3'),
      content('c3'),
      nodes,
      ...close,
    ],
  },
  {
    title: 'one image is committed into the one behind it, under a name that is given',
    images,
    steps: [
      ...begin,
      commit({ 'top-node': 'c2', 'base-node': 'c1', 'backing-file': 'c1.qcow2' }),
      ...done,
      content('c3'),
      nodes,
      ...close,
    ],
  },
  {
    title: 'the active image is committed and the guest moves to the base',
    images,
    steps: [
      ...begin,
      qmp('block-dirty-bitmap-add', { node: 'c0', name: 'b' }),
      commit({ 'filter-node-name': 'over' }),
      event('BLOCK_JOB_READY'),
      blockJobs,
      qmp('blockdev-del', { 'node-name': 'over' }),
      guest('c3', 'write -P 9 3584k 64k'),
      qmp('job-complete', { id: 'j' }),
      event('BLOCK_JOB_COMPLETED', {}, { ignoring: ['len', 'offset'] }),
      job('j', 'null'),
      qmp('query-block-exports'),
      bitmap('c0', 'b', { ignoring: ['sha256'] }),
      guest('c3', 'write -P 7 128k 64k'),
      content('c3'),
      qmp('nbd-server-stop'),
      qmp('blockdev-del', { 'node-name': 'c3' }),
      ...['c0', 'c3'].map(check),
    ],
  },
  {
    title: 'an active commit that is left, or cancelled, changes nothing',
    images,
    steps: [
      ...begin,
      commit({ 'base-node': 'c1', 'auto-dismiss': false, 'backing-file': 'x' }),
      commit({ 'base-node': 'c1', 'auto-dismiss': false }),
      event('BLOCK_JOB_READY'),
      qmp('job-cancel', { id: 'j' }),
      event('BLOCK_JOB_CANCELLED'),
      job('j', 'concluded'),
      jobs,
      qmp('job-dismiss', { id: 'j' }),
      job('j', 'null'),
      qmp('query-block-exports'),
      content('c3'),
      ...close,
    ],
  },
  {
    title: 'a base that is smaller becomes as large as what is committed',
    images: {
      'c0.qcow2': { size: '2M', format: 'qcow2', seed: 6 },
      'c1.qcow2': { size: '4M', format: 'qcow2', backing: 'c0.qcow2' },
      'c2.qcow2': { size: '4M', format: 'qcow2', backing: 'c1.qcow2' },
    },
    steps: [
      fillImages(...below),
      qmp('blockdev-add', chain('c2', chain('c1', { driver: 'qcow2', 'node-name': 'c0', file: file('c0') }))),
      startServer,
      exportDisk('c2'),
      commit({ device: 'c2', 'top-node': 'c1' }),
      ...done,
      content('c2'),
      commit({ device: 'c2' }),
      event('BLOCK_JOB_READY'),
      qmp('job-complete', { id: 'j' }),
      ...done,
      content('c2'),
    ],
  },
  {
    title: 'what is wrong with a commit is told in order',
    images,
    steps: [
      ...begin,
      ...[
        { device: 'nope' },
        { top: 'x', 'top-node': 'c2' },
        { base: 'x', 'base-node': 'c1' },
        { 'top-node': 'nope' },
        { 'top-node': 'c0', 'base-node': 'c2' },
        { top: 'zzz' },
        { base: 'zzz' },
        { 'base-node': 'nope' },
        { 'top-node': 'c2', 'base-node': 'c2' },
        { 'top-node': 'c0' },
        { 'base-node': 'c3' },
        { device: 'c0' },
        { device: 'c2' },
        { 'on-error': 'x' },
        { 'filter-node-name': 'c0' },
        { 'job-id': '1j' },
      ].map(more => commit(more)),
      jobs,
      map('c3', 'base:allocation'),
    ],
  },
]
