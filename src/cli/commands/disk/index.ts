// stillpoint disk: the disks of machines, what is where in them, and what is done with their images while guests go on.

import type { Noun } from '../../define.ts'
import { abort } from './abort.ts'
import { commit } from './commit.ts'
import { copy } from './copy.ts'
import { list } from './list.ts'
import { map } from './map.ts'
import { pivot } from './pivot.ts'
import { pull } from './pull.ts'
import { resize } from './resize.ts'
import { snapshot } from './snapshot.ts'

export const disk: Noun = {
  name: 'disk',
  summary: 'the disks of machines',
  verbs: [list, map, resize, snapshot, copy, pivot, abort, pull, commit],
}
