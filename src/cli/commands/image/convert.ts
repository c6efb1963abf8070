// stillpoint image convert

import { Option } from 'commander'
import { Misuse } from '../../failure.ts'
import { verb } from '../../define.ts'
import { print, printJson } from '../../output.ts'
import type { ConvertOptions } from '../../image/convert-image.ts'
import {
  forceShareOption,
  formatOption,
  imageOptsOption,
  list,
  nameOf,
  progressOption,
  quietOption,
  type NameOptions,
} from './options.ts'

interface Options extends NameOptions {
  readonly targetFormat?: string
  readonly options: readonly string[]
  readonly backing?: string
  readonly backingFormat?: string
  readonly create: boolean
  readonly compress?: boolean
  readonly sparseSize?: string
  readonly targetIsZero?: boolean
  readonly targetImageOpts?: boolean
  readonly bitmaps?: boolean
  readonly skipBrokenBitmaps?: boolean
  readonly parallel: string
  readonly progress?: boolean
  readonly quiet?: boolean
}

export const convert = verb<{ file: string; target: string }, Options>({
  name: 'convert',
  summary: 'copy a disk into an image of another format, from or to an NBD export, or compressed',
  details: 'What reads as zeroes takes no space in the target.',
  arguments: { '<file>': 'the image to read', '<target>': 'the image to make; with -n one that is there' },
  options: [
    formatOption(),
    new Option('-O, --target-format <format>', 'raw (the default) or qcow2'),
    new Option('-o, --options <list>', 'of the target, as for create').argParser(list).default([]),
    new Option('-B, --backing <file>', 'the target has this image behind it, and gets only what the source has of its own'),
    new Option('-F, --backing-format <format>', 'format of the backing file'),
    new Option('-n, --no-create', 'the target is there: write into it'),
    new Option('-c, --compress', 'compress, for qcow2'),
    new Option('-S, --sparse-size <size>', 'leave out runs of zeroes of so many bytes; 0: write all of them').default('4k'),
    new Option('--target-is-zero', 'with -n: the target reads as zeroes, as it is'),
    new Option('--target-image-opts', 'with -n: the target is options: driver=qcow2,file.filename=...'),
    new Option('--bitmaps', 'copy stored bitmaps too, to a qcow2 target'),
    new Option('--skip-broken-bitmaps', 'with --bitmaps: without those that are inconsistent'),
    new Option('-m, --parallel <count>', 'requests under way at a time').default('8'),
    new Option('-W, --out-of-order', 'as in qemu-img; pieces are written in any order anyway'),
    progressOption(),
    quietOption(),
    forceShareOption(),
    imageOptsOption(),
  ],
  namesDaemon: false,
  examples: [
    ['stillpoint image convert -O qcow2 -c disk.raw disk.qcow2', 'a small copy'],
    [
      "stillpoint image convert -O qcow2 'nbd+unix:///full/root?socket=/run/stillpoint/nbd.sock' root.qcow2",
      'a disk of a session, to a file',
    ],
    ["stillpoint image convert -n root.qcow2 'nbd://restore.example/root'", 'into an NBD export'],
  ],
  async run({ args: { file, target }, options, json }) {
    const [{ convertImage }, { sizeOf }] = await Promise.all([
      import('../../image/convert-image.ts'),
      import('../../image/sizes.ts'),
    ])
    const parallel = Number(options.parallel)
    if (!Number.isInteger(parallel) || parallel < 1 || parallel > 16) throw new Misuse('-m takes a number between 1 and 16')
    if (options.targetIsZero && options.create) throw new Misuse('--target-is-zero requires use of -n flag')
    if (options.targetImageOpts && options.create) throw new Misuse('--target-image-opts requires use of -n flag')
    const wanted: ConvertOptions = {
      source: nameOf(file, options),
      target: {
        name: target,
        format: options.targetImageOpts ? undefined : options.targetFormat,
        imageOpts: options.targetImageOpts,
      },
      create: options.create,
      options: options.options,
      backingFile: options.backing,
      backingFormat: options.backingFormat,
      compress: options.compress === true,
      sparse: sizeOf(options.sparseSize ?? '4k', 'sparse size'),
      targetIsZero: options.targetIsZero === true,
      bitmaps: options.skipBrokenBitmaps ? 'skip broken' : options.bitmaps ? 'all' : 'none',
      atOnce: parallel,
      progress: options.progress === true,
    }
    const { skipped, size } = await convertImage(wanted)
    if (json) printJson({ file, target, size, 'skipped-bitmaps': skipped })
    else if (!options.quiet) print(skipped.map(name => `warning: Skipping inconsistent bitmap '${name}'\n`).join(''))
  },
})
