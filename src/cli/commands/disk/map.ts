// stillpoint disk map: what is where in a disk.

import { Option } from 'commander'
import { InvalidParameter, NotFound } from '../../../base/errors.ts'
import { nearest } from '../../../base/nearest.ts'
import { connectDaemon } from '../../connect.ts'
import type { Daemon } from '../../daemon-client.ts'
import { verb } from '../../define.ts'
import { sessionUris } from '../../export-uri.ts'
import { list } from '../image/options.ts'
import { sizeOf } from './named-disk.ts'

interface Options {
  readonly bitmap?: readonly string[]
  readonly offset?: string
  readonly length?: string
}

export const map = verb<{ disk: string }, Options>({
  name: 'map',
  summary: 'show what is where in a disk: data, zeroes, holes, and what a bitmap says changed',
  details:
    'Asks over NBD, as a backup program would. With --json it is one array with an object on each line, as `qemu-img map --output=json` has it, and with --bitmap a member "dirty"; with several bitmaps a member "bitmaps", by name. All are read side by side, so a range ends where any of them changes.',
  arguments: {
    '<disk>': 'the export: MACHINE/DISK, or SESSION/DISK of an open session; or the address of any NBD export, nbd://...',
  },
  options: [
    new Option(
      '--bitmap <name>',
      'a bitmap of the export, such as backup-root in a session with --since; may be repeated',
    ).argParser(list),
    new Option('--offset <size>', 'only from there on'),
    new Option('--length <size>', 'only so much'),
  ],
  examples: [
    ['stillpoint disk map db/root', 'what takes space'],
    ['stillpoint disk map more/root --bitmap backup-root', 'what an increment would read'],
    ['stillpoint disk map db/root --offset 1G --length 64M', 'a part of it'],
    [
      "stillpoint disk map 'nbd+unix:///disk?socket=/run/qsd.sock' --bitmap monday --bitmap tuesday",
      'of any server, without a daemon',
    ],
    [`stillpoint disk map db/root --json | jq 'map(select(.data).length) | add'`, 'bytes of data'],
  ],
  async run({ args: { disk: name }, options, json, socket }) {
    const [offset, length] = [sizeOf('--offset', options.offset), sizeOf('--length', options.length)]
    const uri = /^nbds?(\+unix)?:/i.test(name) ? name : await uriOf(name, socket)
    const { writeMap } = await import('../../disk-map/write-map.ts')
    await writeMap(uri, name, { bitmaps: [...new Set(options.bitmap)], offset, length, json })
  },
})

/** Where the export can be asked. @throws NotFound, InvalidParameter */
async function uriOf(name: string, socket: string): Promise<string> {
  await using daemon = await connectDaemon(socket)
  const [{ nbd }, exports] = await Promise.all([daemon.ask('query-daemon'), exportsOf(daemon)])
  const found = exports.find(one => one.name === name)
  if (!found) {
    const names = exports.map(({ name }) => name)
    const meant = nearest(name, names)
    const known = meant ? `did you mean ${meant}?` : names.length > 0 ? `there are: ${names.join(', ')}` : 'there are none'
    throw new NotFound(`No disk of a machine or a session is called ${name}; ${known}`)
  }
  const [uri] = sessionUris(found, found.export, nbd)
  if (uri === undefined)
    throw new InvalidParameter('The daemon listens nowhere for NBD clients; add a place to "nbd" in its configuration')
  return uri
}

async function exportsOf(daemon: Daemon) {
  const [machines, sessions] = await Promise.all([daemon.ask('query-machines'), daemon.ask('query-backups')])
  const live = machines.flatMap(({ disks }) => disks.map(disk => ({ name: disk.export, export: disk.export, socket: undefined })))
  const frozen = sessions.flatMap(({ name, socket, disks }) =>
    disks.flatMap(disk => (disk.export === undefined ? [] : [{ name: `${name}/${disk.disk}`, export: disk.export, socket }])),
  )
  return [...live, ...frozen]
}
