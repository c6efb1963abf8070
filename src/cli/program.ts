// The program `stillpoint` with all of its commands.

import type { Command } from 'commander'
import { commands } from './commands/index.ts'
import { programOf, type Above } from './program-of.ts'

export const createProgram = ({ runDaemon }: Above): Command => programOf(commands(runDaemon))
