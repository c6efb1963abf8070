// stillpoint disk resize: a disk becomes longer or shorter while its guest goes on.

import { Option } from 'commander'
import { InvalidParameter, NotFound } from '../../../base/errors.ts'
import { connectDaemon } from '../../connect.ts'
import { verb } from '../../define.ts'
import { Misuse } from '../../failure.ts'
import { printJson, print } from '../../output.ts'
import { DISK, namedDisk, sizeOf } from './named-disk.ts'

export const resize = verb<{ disk: string; size: string }, { shrink?: boolean }>({
  name: 'resize',
  summary: 'make a disk longer or shorter while its guest goes on',
  details:
    'What it grows by reads as zeroes, and counts as written in every checkpoint. A client that is connected keeps the size that it was told, since NBD has no way to tell it another; who connects from now on sees the new one.',
  arguments: { '<disk>': DISK, '<size>': 'the new size, or by how much: +10G, -1G' },
  options: [new Option('--shrink', 'allow it to become shorter; what is behind the new end is lost')],
  signedSize: true,
  examples: [
    ['stillpoint disk resize db/root +10G', 'ten more gigabytes'],
    ['stillpoint disk resize db/root 20G --shrink', 'shorter: first make the file systems in it smaller'],
  ],
  async run({ args: { disk, size: text }, options: { shrink = false }, json, socket }) {
    const named = namedDisk(disk)
    const [, sign = '', amount = ''] = /^([+-]?)(.*)$/s.exec(text) ?? []
    const said = sizeOf('SIZE', amount)!
    await using daemon = await connectDaemon(socket)
    const machine = (await daemon.ask('query-machines')).find(({ name }) => name === named.machine)
    const found = machine?.disks.find(({ name }) => name === named.disk)
    if (!found) throw new NotFound(`There is no disk ${disk}; 'stillpoint disk list' shows those there are`)
    const size = sign === '' ? said : found.size + (sign === '+' ? said : -said)
    if (size < 0) throw new InvalidParameter(`${disk} has ${found.size} bytes, and cannot lose ${said}`)
    if (size < found.size && !shrink)
      throw new Misuse(
        `${disk} has ${found.size} bytes and would have ${size}: say --shrink if what is behind the new end may be lost`,
      )
    await daemon.ask('block_resize', { 'node-name': found.node, size })
    if (json) printJson({ disk, size })
    else print(`${disk} has ${size} bytes now; clients that are connected see that when they connect again.\n`)
  },
})
