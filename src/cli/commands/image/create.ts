// stillpoint image create

import { Option } from 'commander'
import { verb } from '../../define.ts'
import { print, printJson } from '../../output.ts'
import { list, quietOption } from './options.ts'

interface Options {
  readonly format: string
  readonly options: readonly string[]
  readonly backing?: string
  readonly backingFormat?: string
  readonly backingUnsafe?: boolean
  readonly quiet?: boolean
}

export const create = verb<{ file: string; size?: string }, Options>({
  name: 'create',
  summary: 'make a new image: raw or qcow2',
  details: 'A file that is there is overwritten, unless another program uses it.',
  arguments: { '<file>': 'the image', '[size]': 'of the disk, such as 10G; as long as the backing file where there is one' },
  options: [
    new Option('-f, --format <format>', 'raw or qcow2').default('raw'),
    new Option('-o, --options <list>', 'name=value,...; `-o help` lists them').argParser(list).default([]),
    new Option('-b, --backing <file>', 'what shows through where nothing is written; relative to the folder of the new image'),
    new Option('-F, --backing-format <format>', 'format of the backing file'),
    new Option('-u, --backing-unsafe', 'do not look at the backing file; it need not be there yet'),
    quietOption(),
  ],
  namesDaemon: false,
  examples: [
    ['stillpoint image create -f qcow2 disk.qcow2 100G', 'an empty disk'],
    ['stillpoint image create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2', 'one that begins as another one is'],
    ['stillpoint image create -f qcow2 -o help disk.qcow2', 'what -o takes'],
  ],
  async run({ args: { file, size }, options, json }) {
    const [{ makeImage, optionsOfFormat }, { Images }, { helpText, wantsHelp }, { sizeOf }] = await Promise.all([
      import('../../image/create.ts'),
      import('../../image/images.ts'),
      import('../../image/key-values.ts'),
      import('../../image/sizes.ts'),
    ])
    const { format } = options
    if (wantsHelp(options.options)) return print(helpText(optionsOfFormat(format), format))
    await using images = new Images()
    const said = await makeImage(images, {
      path: file,
      format,
      options: options.options,
      size: size === undefined ? undefined : sizeOf(size),
      backingFile: options.backing,
      backingFormat: options.backingFormat,
      unsafe: options.backingUnsafe,
    })
    if (json) printJson({ file, format, said })
    else if (!options.quiet) print(`${said}\n`)
  },
})
