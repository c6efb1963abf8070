// stillpoint image info

import { Option } from 'commander'
import { verb } from '../../define.ts'
import { print } from '../../output.ts'
import { forceShareOption, formatOption, imageOptsOption, jsonText, nameOf, outputOption, type NameOptions } from './options.ts'

export const info = verb<{ file: string }, NameOptions & { backingChain?: boolean; output: string }>({
  name: 'info',
  summary: 'say what an image is: format, sizes, backing file, snapshots, bitmaps',
  arguments: { '<file>': 'the image: a path, or the address of an NBD export' },
  options: [
    formatOption(),
    outputOption(),
    new Option('--backing-chain', 'also the images behind it'),
    forceShareOption(),
    imageOptsOption(),
  ],
  namesDaemon: false,
  examples: [
    ['stillpoint image info disk.qcow2', 'what it is'],
    ['stillpoint image info --backing-chain --output=json -U disk.qcow2', 'all of its chain, though somebody writes to it'],
  ],
  async run({ args: { file }, options, json }) {
    const { imageInfo, infoText } = await import('../../image/info.ts')
    const all = await imageInfo(nameOf(file, options), options.backingChain === true)
    if (json || options.output === 'json') print(jsonText(options.backingChain ? all : all[0], json))
    else print(all.map(infoText).join('\n'))
  },
})
