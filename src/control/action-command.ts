// A command that can also be one action among several of a transaction. Alone it is a transaction of one, and while its client has a
// transaction open (transaction-begin) it is a step of that.

import type { z } from 'zod'
import type { Action } from '../block/action.ts'
import type { JobGroup } from '../jobs/job-group.ts'
import { transact } from '../transactions/transact.ts'
import { command, type Command } from './command.ts'
import type { CommandContext } from './context.ts'
import { drainDisks } from './drain-disks.ts'

interface ActionKind<Arguments> {
  /** Nodes on which no write is under way when it takes effect, by name. */
  disks(this: void, args: Arguments): readonly string[]
  /** `group`: of the jobs that are to succeed together, where the transaction says so. */
  action(this: void, args: Arguments, context: CommandContext, group?: JobGroup): Action
}

export interface ActionCommand<Arguments> extends Command<Arguments, void>, ActionKind<Arguments> {}

/** Any of them, for arrays. */
// oxlint-disable-next-line no-explicit-any -- the arguments are each command's own
export type AnyActionCommand = ActionCommand<any>

interface Definition<Schema extends z.ZodType> extends ActionKind<z.output<Schema>> {
  readonly name: string
  readonly summary: string
  readonly arguments: Schema
  readonly features?: readonly string[]
  /** False where it matters to nobody whether a write is under way, as long as nothing else must happen at the same instant. */
  readonly drainsAlone: boolean
}

export function actionCommand<Schema extends z.ZodType>({
  name,
  summary,
  arguments: schema,
  features,
  drainsAlone,
  disks,
  action,
}: Definition<Schema>): ActionCommand<z.output<Schema>> {
  const alone = command({
    name,
    summary,
    arguments: schema,
    ...(features && { features }),
    async run(args, context, { transaction }) {
      if (transaction?.isOpen)
        return transaction.add({ type: name, disks: disks(args), make: group => action(args, context, group) })
      await transact([action(args, context)], async commits =>
        drainsAlone ? drainDisks(context.graph, disks(args), commits) : await commits(),
      )
    },
  })
  return { ...alone, disks, action }
}
