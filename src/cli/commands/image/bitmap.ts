// stillpoint image bitmap

import { Option } from 'commander'
import { verb } from '../../define.ts'
import { Misuse } from '../../failure.ts'
import { plural } from '../../format.ts'
import { print, printJson } from '../../output.ts'
import type { BitmapActions, RepairedBitmaps } from '../../image/bitmap.ts'
import { formatOption, imageOptsOption, list, nameOf, type NameOptions } from './options.ts'

interface Options extends NameOptions, Pick<BitmapActions, 'add' | 'remove' | 'clear' | 'enable' | 'disable' | 'merge'> {
  readonly granularity?: string
  readonly sourceFile?: string
  readonly sourceFormat?: string
  readonly repair?: boolean
}

export const bitmap = verb<{ file: string; bitmap?: string }, Options>({
  name: 'bitmap',
  summary: 'change a bitmap that a qcow2 image stores, or mend all of them',
  details:
    'Several changes may be given; they are made in this order: remove, add, clear, merge, enable, disable. With --repair the list of bitmaps is written anew with what can be read of it, and without those that cannot be trusted; the next backup after one is gone must be a full one.',
  arguments: { '<file>': 'the image', '[bitmap]': 'the name of the bitmap' },
  options: [
    formatOption(),
    new Option('--add', 'a new one, which records unless --disable is given'),
    new Option('--remove', 'take it away, also where it is inconsistent'),
    new Option('--clear', 'take all marks away'),
    new Option('--enable', 'record writes from now on'),
    new Option('--disable', 'record nothing from now on'),
    new Option('--merge <source>', 'add the marks of another one; may be given more than once').argParser(list),
    new Option('-g, --granularity <size>', 'bytes to a mark, for --add: a power of two; 64k by default'),
    new Option('-b, --source-file <file>', 'the image that has the bitmaps to merge; by default the same'),
    new Option('-F, --source-format <format>', 'its format: qcow2'),
    new Option('--repair', 'mend a damaged list of bitmaps, and remove those that are inconsistent'),
    imageOptsOption(),
  ],
  namesDaemon: false,
  examples: [
    ['stillpoint image bitmap --add -g 64k disk.qcow2 since-monday', 'a bitmap that records from the first write on'],
    ['stillpoint image bitmap --merge tuesday disk.qcow2 since-monday', 'what either of them has'],
    ['stillpoint image bitmap --repair disk.qcow2', 'after a crash: away with what cannot be trusted'],
  ],
  async run({ args: { file, bitmap: name }, options, json }) {
    const [{ changeBitmap, repairBitmaps }, { formatOf }, { sizeOf }] = await Promise.all([
      import('../../image/bitmap.ts'),
      import('../../image/images.ts'),
      import('../../image/sizes.ts'),
    ])
    const { add, remove, clear, enable, disable, merge = [], granularity, sourceFile, sourceFormat, repair } = options
    const image = nameOf(file, options)
    const any = add || remove || clear || enable || disable || merge.length > 0
    if (repair && (any || name !== undefined)) throw new Misuse('--repair is about all bitmaps; leave out the rest')
    if (!repair && name === undefined) throw new Misuse('Expected image file name and bitmap name')
    if (!repair && !any)
      throw new Misuse(
        'Need at least one of --add, --remove, --clear, --enable, --disable, or --merge (or --repair without a bitmap)',
      )
    if (enable && disable) throw new Misuse('--enable and --disable do not go together')
    if (granularity !== undefined && !add) throw new Misuse('granularity only supported with --add')
    if (sourceFile !== undefined && merge.length === 0) throw new Misuse('Merge bitmap source file only supported with --merge')
    const format = await formatOf(image)
    if (format !== 'qcow2') throw new Misuse(`'${file}' is ${format}; only qcow2 images store bitmaps`)
    if (repair) return tell(await repairBitmaps(image), file, json)
    await changeBitmap(image, name!, {
      add,
      remove,
      clear,
      enable,
      disable,
      merge,
      granularity: granularity === undefined ? undefined : sizeOf(granularity, 'granularity'),
      source: sourceFile === undefined ? undefined : { name: sourceFile, format: sourceFormat },
    })
    if (json) printJson({ file, bitmap: name })
  },
})

function tell({ kept, removed, problem }: RepairedBitmaps, file: string, json: boolean) {
  if (json) return printJson({ file, kept, removed, problem })
  const lines = [
    ...(problem === undefined ? [] : [`The list of bitmaps was damaged (${problem}) and is written anew.`]),
    ...removed.map(({ name, why }) => `Bitmap '${name}' was removed: ${why}.`),
    ...(problem !== undefined || removed.length > 0
      ? [
          `${plural(kept.length, 'bitmap')} left. 'stillpoint image check -r leaks' gives back what space they may have left behind.`,
        ]
      : ['Nothing is wrong with the bitmaps of this image.']),
  ]
  print(lines.map(line => `${line}\n`).join(''))
}
