// All commands of the control socket. A file for each, named as on the wire.

import type { AnyCommand } from '../command.ts'
import { qmpCapabilities } from './qmp_capabilities.ts'
import { queryCommands } from './query-commands.ts'
import { queryVersion } from './query-version.ts'
import { quit } from './quit.ts'

export const commands: readonly AnyCommand[] = [qmpCapabilities, queryCommands, queryVersion, quit]
