// stillpoint image check

import { Option } from 'commander'
import { NotSupported } from '../../../base/errors.ts'
import { verb } from '../../define.ts'
import { exitWith, tellFailure } from '../../failure.ts'
import { print } from '../../output.ts'
import {
  forceShareOption,
  formatOption,
  imageOptsOption,
  jsonText,
  nameOf,
  outputOption,
  quietOption,
  type NameOptions,
} from './options.ts'

interface Options extends NameOptions {
  readonly output: string
  readonly repair?: 'leaks' | 'all'
  readonly quiet?: boolean
}

const NO_CHECKS = 63

export const check = verb<{ file: string }, Options>({
  name: 'check',
  summary: 'see whether a qcow2 image agrees with itself, and repair it',
  details:
    'Exit codes are those of qemu-img check: 0 all is well, or mended; 1 it could not be checked; 2 it is corrupt; 3 it only loses space (leaks); 63 the format has no checks.',
  arguments: { '<file>': 'the image' },
  options: [
    formatOption(),
    new Option('-r, --repair <what>', 'leaks: give back space that nobody uses; all: mend all that can be mended').choices([
      'leaks',
      'all',
    ]),
    outputOption(),
    quietOption(),
    forceShareOption(),
    imageOptsOption(),
  ],
  namesDaemon: false,
  examples: [
    ['stillpoint image check disk.qcow2', 'is it good? (2: no; 3: it only loses space)'],
    ['stillpoint image check -r all disk.qcow2', 'mend it'],
  ],
  async run({ args: { file }, options, json }) {
    const [{ checkAndRepair, checkExitCode, checkJson, checkText }, { formatOf, Images }] = await Promise.all([
      import('../../image/check.ts'),
      import('../../image/images.ts'),
    ])
    return exitWith(1, async () => {
      const image = nameOf(file, options)
      const format = await formatOf(image)
      if (format !== 'qcow2') {
        await using images = new Images()
        await images.openReadOnly(image) // what cannot be read is told as such
        tellFailure(new NotSupported(`'${file}' is ${format}, and this image format does not support checks`))
        return NO_CHECKS
      }
      const { first, now } = await checkAndRepair(image, options.repair ?? 'none')
      if (json || options.output === 'json') print(jsonText(checkJson(file, format, now), json))
      else if (!options.quiet) print(checkText(first, now))
      return checkExitCode(now)
    })
  },
})
