// stillpoint disk list: the disks of all machines.

import { Option } from 'commander'
import { formatSize } from '../../../base/units.ts'
import { connectDaemon } from '../../connect.ts'
import { verb } from '../../define.ts'
import { formatShare } from '../../format.ts'
import { note, print, printJson } from '../../output.ts'
import type { DiskJobInfo } from '../../replies.ts'
import { table } from '../../table.ts'

export const list = verb<object, { jobs?: boolean }>({
  name: 'list',
  summary: 'list the disks of all machines',
  details: 'DISK is the name of the NBD export; NODE is what QMP commands call it.',
  options: [new Option('--jobs', 'the copies, pulls and commits instead: of each disk the last one')],
  examples: [
    ['stillpoint disk list', 'sizes, clients and images'],
    ['stillpoint disk list --jobs', 'how far a copy is, and how the last one ended'],
  ],
  async run({ options: { jobs }, json, socket }) {
    await using daemon = await connectDaemon(socket)
    if (jobs) return listJobs(await daemon.ask('query-disk-jobs'), json)
    const machines = await daemon.ask('query-machines')
    const disks = machines.flatMap(({ name: machine, disks }) => disks.map(disk => ({ machine, ...disk })))
    if (json) return disks.forEach(printJson)
    if (disks.length === 0) note('No disks: the configuration has no machines.')
    print(
      table(disks, [
        { title: 'DISK', of: disk => disk.export },
        { title: 'NODE', of: disk => disk.node },
        { title: 'SIZE', right: true, of: ({ size }) => formatSize(size) },
        { title: 'MODE', of: disk => (disk['read-only'] ? 'read-only' : 'writable') },
        { title: 'CLIENTS', right: true, of: ({ clients }) => clients },
        { title: 'IMAGE', of: ({ image }) => image },
      ]),
    )
  },
})

function listJobs(jobs: readonly DiskJobInfo[], json: boolean) {
  if (json) return jobs.forEach(printJson)
  if (jobs.length === 0) note('Nothing has worked on a disk since the daemon was started.')
  print(
    table(jobs, [
      { title: 'DISK', of: ({ machine, disk }) => `${machine}/${disk}` },
      { title: 'JOB', of: ({ type }) => type },
      { title: 'STATUS', of: statusOf },
      { title: 'DONE', right: true, of: ({ current, total }) => formatShare(current, total) },
      { title: 'TARGET', of: ({ target }) => target },
    ]),
  )
}

const statusOf = ({ over, cancelled, error, status }: DiskJobInfo) =>
  !over ? status : error !== undefined ? `failed: ${error}` : cancelled ? 'aborted' : 'done'
