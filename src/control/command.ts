// How a command of the control socket is defined. One file for each, with its wire name; commands/index.ts has the list.

import { z } from 'zod'
import type { CommandContext, Session } from './context.ts'

export interface Command<Arguments, Result> {
  /** As on the wire. */
  readonly name: string
  /** A sentence for the reference page and for help. */
  readonly summary: string
  /** See qapi-type.ts for what may be in it. */
  readonly arguments: z.ZodType<Arguments>
  /** Only described by this, not checked: what `run` returns is of its type already. Without it the command returns `{}`. */
  readonly returns?: z.ZodType | undefined
  /** False for what looks at nothing that another command changes: it need not wait for its turn. */
  readonly turn: boolean
  /** What query-qmp-schema says of it beside its types: "deprecated", "unstable", and names of what it learned later. */
  readonly features?: readonly string[] | undefined
  run(args: Arguments, context: CommandContext, session: Session): Result | Promise<Result>
}

/** Any command, for arrays of them. */
// oxlint-disable-next-line no-explicit-any -- the arguments are each command's own
export type AnyCommand = Command<any, unknown>

interface Definition<Arguments extends z.ZodType, Returns extends z.ZodType> {
  readonly name: string
  readonly summary: string
  /** Default: none. */
  readonly arguments?: Arguments
  readonly returns?: Returns
  /** Default: true. */
  readonly turn?: boolean
  readonly features?: readonly string[]
  /** A Fault that it throws is the client's answer; anything else is a bug of ours. */
  run(args: z.output<Arguments>, context: CommandContext, session: Session): z.input<Returns> | Promise<z.input<Returns>>
}

const none = z.strictObject({})

export function command<Arguments extends z.ZodType = typeof none, Returns extends z.ZodType = z.ZodVoid>({
  arguments: args = none as z.ZodType as Arguments,
  turn = true,
  ...rest
}: Definition<Arguments, Returns>): Command<z.output<Arguments>, z.input<Returns>> {
  return { ...rest, arguments: args as z.ZodType<z.output<Arguments>>, turn }
}
