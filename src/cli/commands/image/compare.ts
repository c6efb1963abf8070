// stillpoint image compare

import { Option } from 'commander'
import { verb } from '../../define.ts'
import { exitWith } from '../../failure.ts'
import { print, printJson } from '../../output.ts'
import { forceShareOption, imageOptsOption, nameOf, progressOption, quietOption, type NameOptions } from './options.ts'

interface Options extends NameOptions {
  readonly secondFormat?: string
  readonly strict?: boolean
  readonly progress?: boolean
  readonly quiet?: boolean
}

export const compare = verb<{ file: string; other: string }, Options>({
  name: 'compare',
  summary: 'see whether two images show the same disk',
  details: 'Exit codes are those of qemu-img compare: 0 they do; 1 they do not; 2 one of them cannot be read.',
  arguments: { '<file>': 'an image', '<other>': 'another one' },
  options: [
    new Option('-f, --format <format>', 'format of the first image'),
    new Option('-F, --second-format <format>', 'format of the second'),
    new Option('-s, --strict', 'they must have the same size, and data and holes in the same places'),
    progressOption(),
    quietOption(),
    forceShareOption(),
    imageOptsOption(),
  ],
  namesDaemon: false,
  examples: [['stillpoint image compare disk.qcow2 copy.raw', 'is the copy the same? (1: it is not)']],
  run: ({ args: { file, other }, options, json }) =>
    exitWith(2, async () => {
      const [{ compareDisks }, { Images }, { DiskProgress }] = await Promise.all([
        import('../../image/compare.ts'),
        import('../../image/images.ts'),
        import('../../image/disk-progress.ts'),
      ])
      await using images = new Images()
      const first = images.reader(await images.openReadOnly(nameOf(file, options)))
      const second = images.reader(await images.openReadOnly(nameOf(other, { ...options, format: options.secondFormat! })))
      using progress = new DiskProgress('comparing', Math.max(first.size, second.size), options.progress === true)
      const { difference, longer } = await compareDisks(first, second, options.strict === true, done => progress.at(done))
      if (json) printJson({ identical: difference === undefined, ...(difference !== undefined && { difference }) })
      else if (!options.quiet) {
        if (longer && !options.strict) print('Warning: Image size mismatch!\n')
        print(`${difference ?? 'Images are identical.'}\n`)
      }
      return difference === undefined ? 0 : 1
    }),
})
