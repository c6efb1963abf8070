// The options of qemu-storage-daemon's command line that stand for control commands: each is done as its command is, in the order written.

import assert from 'node:assert/strict'
import { z } from 'zod'
import { Fault, InvalidParameter } from '../base/errors.ts'
import { parseArguments } from './arguments.ts'
import { Chardevs } from './chardev.ts'
import { blockExportAdd } from './commands/block-export-add.ts'
import { blockdevAdd } from './commands/blockdev-add.ts'
import { nbdServerOptions, startNbdServer } from './commands/nbd-server-start.ts'
import { objectAdd } from './commands/object-add.ts'
import type { CommandContext, Session } from './context.ts'
import { parseOption } from './keyval.ts'
import { listenAddressOf, socketAddress } from './nbd-address.ts'
import { qapiTypeOf } from './qapi-type.ts'
import type { Monitor } from './qmp-server.ts'

export type CommandLineOption = keyof typeof kinds

/** One of them, as it was written. */
export interface CommandLineStep {
  readonly option: CommandLineOption
  readonly text: string
}

/** Nobody is connected, and none of these commands asks who is. */
const nobody: Session = { negotiate: () => assert.fail(), transaction: undefined, commands: [] }

interface World {
  readonly context: CommandContext
  readonly chardevs: Chardevs
  readonly monitors: Monitor[]
}

interface Kind<Schema extends z.ZodType> {
  readonly schema: Schema
  /** The key of a first value that has none. */
  readonly impliedKey?: string
  run(this: void, args: z.output<Schema>, world: World): unknown
}

const kind = <Schema extends z.ZodType>({ schema, impliedKey, run }: Kind<Schema>) => ({
  run: (text: string, world: World) => run(parseArguments(schema, parseOption(text, qapiTypeOf(schema), impliedKey)), world),
})

const monitorOptions = z.strictObject({
  id: z.string().optional(),
  chardev: z.string(),
  mode: z.enum(['control', 'readline']).optional(),
  pretty: z.boolean().optional(),
})

const kinds = {
  blockdev: kind({
    schema: blockdevAdd.arguments,
    impliedKey: 'driver',
    run: (args, { context }) => blockdevAdd.run(args, context, nobody),
  }),
  object: kind({
    schema: objectAdd.arguments,
    impliedKey: 'qom-type',
    run: (args, { context }) => objectAdd.run(args, context, nobody),
  }),
  'nbd-server': kind({
    schema: z.strictObject({ addr: socketAddress, ...nbdServerOptions.shape }),
    run: ({ addr, ...options }, { context }) =>
      startNbdServer(() => listenAddressOf(addr, { inherited: true }), options, context),
  }),
  export: kind({
    schema: blockExportAdd.arguments,
    impliedKey: 'type',
    run: (args, { context }) => blockExportAdd.run(args, context, nobody),
  }),
  chardev: { run: (text: string, { chardevs }: World) => chardevs.add(text) },
  monitor: kind({
    schema: monitorOptions,
    impliedKey: 'chardev',
    async run({ chardev, mode, pretty = false }, { chardevs, monitors }) {
      if (mode === 'readline') throw new InvalidParameter('Only QMP is supported')
      monitors.push(await chardevs.use(chardev, pretty))
    },
  }),
}

/**
 * Does all of them, and returns the monitors to be served once everything is there.
 * @throws InvalidParameter that says which option it was
 */
export async function runCommandLine(steps: readonly CommandLineStep[], context: CommandContext): Promise<Monitor[]> {
  const world: World = { context, chardevs: new Chardevs(), monitors: [] }
  for (const { option, text } of steps) {
    try {
      await kinds[option].run(text, world)
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      throw new InvalidParameter(`--${option} ${text}: ${error.message}`, { cause: error })
    }
  }
  return world.monitors
}
