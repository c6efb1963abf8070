// How a dirty bitmap is named on the control socket (QMP's BlockDirtyBitmap and BlockDirtyBitmapOrStr).

import { z } from 'zod'
import type { BitmapsOf } from '../bitmaps/actions.ts'
import type { CommandContext } from './context.ts'
import { findBitmapNode } from './find-node.ts'
import { named } from './qapi-type.ts'

export const bitmapArguments = z.strictObject({ node: z.string(), name: z.string() })

/** A name alone is of a node that the command says. */
export const bitmapOrName = named('BlockDirtyBitmapOrStr', z.union([z.string(), bitmapArguments]))

/** Looked up when the action is prepared. */
export const bitmapsOf =
  ({ graph }: CommandContext, node: string): BitmapsOf =>
  () =>
    findBitmapNode(graph, node).bitmaps
