// stillpoint image: work on image files without a daemon, as qemu-img does.

import type { Noun } from '../../define.ts'
import { bitmap } from './bitmap.ts'
import { check } from './check.ts'
import { compare } from './compare.ts'
import { convert } from './convert.ts'
import { create } from './create.ts'
import { info } from './info.ts'
import { map } from './map.ts'
import { resize } from './resize.ts'

export const image: Noun = {
  name: 'image',
  summary: 'image files, without a daemon: what qemu-img does for raw and qcow2',
  verbs: [create, info, check, map, convert, compare, resize, bitmap],
}
