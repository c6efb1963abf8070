// stillpoint image map

import { Option } from 'commander'
import { verb } from '../../define.ts'
import { print } from '../../output.ts'
import { forceShareOption, formatOption, imageOptsOption, nameOf, outputOption, type NameOptions } from './options.ts'

export const map = verb<{ file: string }, NameOptions & { output: string; startOffset?: string; maxLength?: string }>({
  name: 'map',
  summary: 'show which parts of an image are data, which layer has them, and where',
  arguments: { '<file>': 'the image' },
  options: [
    formatOption(),
    outputOption(),
    new Option('-s, --start-offset <size>', 'where to begin'),
    new Option('-l, --max-length <size>', 'how much of it'),
    forceShareOption(),
    imageOptsOption(),
  ],
  namesDaemon: false,
  examples: [['stillpoint image map --output=json disk.qcow2', 'each part, in the form of qemu-img map']],
  async run({ args: { file }, options, json }) {
    const [{ imageMap, mapJson, mapText }, { sizeOf }] = await Promise.all([
      import('../../image/map.ts'),
      import('../../image/sizes.ts'),
    ])
    const { startOffset, maxLength } = options
    const entries = imageMap(nameOf(file, options), {
      start: startOffset === undefined ? undefined : sizeOf(startOffset, 'start offset'),
      length: maxLength === undefined ? undefined : sizeOf(maxLength, 'max length'),
    })
    for await (const text of json || options.output === 'json' ? mapJson(entries) : mapText(entries)) print(text)
  },
})
