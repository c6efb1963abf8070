// stillpoint image resize

import { Option } from 'commander'
import { verb } from '../../define.ts'
import { print, printJson } from '../../output.ts'
import { formatOption, imageOptsOption, nameOf, quietOption, type NameOptions } from './options.ts'

interface Options extends NameOptions {
  readonly shrink?: boolean
  readonly preallocation: 'off' | 'metadata' | 'falloc' | 'full'
  readonly quiet?: boolean
}

export const resize = verb<{ file: string; size: string }, Options>({
  name: 'resize',
  summary: 'make the disk of an image longer or shorter',
  arguments: { '<file>': 'the image', '<size>': 'the new size, or by how much: +10G, -1G' },
  options: [
    formatOption(),
    new Option('--shrink', 'allow it to become shorter; what is behind the new end is lost'),
    new Option('--preallocation <mode>', 'for what it grows by').choices(['off', 'metadata', 'falloc', 'full']).default('off'),
    quietOption(),
    imageOptsOption(),
  ],
  namesDaemon: false,
  signedSize: true,
  examples: [
    ['stillpoint image resize disk.qcow2 +10G', 'ten more gigabytes'],
    ['stillpoint image resize --shrink disk.qcow2 20G', 'shorter: first make the file systems in it smaller'],
  ],
  async run({ args: { file, size }, options, json }) {
    const { resizeImage } = await import('../../image/resize.ts')
    const { shrink = false, preallocation } = options
    const now = await resizeImage(nameOf(file, options), { size, shrink, preallocation })
    if (json) printJson({ file, size: now })
    else if (!options.quiet) print('Image resized.\n')
  },
})
