// Our control socket beside qemu-storage-daemon's: odd cases of every command.

import { compareAll } from '../helpers/compare-daemons.ts'
import { oddScenarios } from './scenarios/index.ts'

compareAll(oddScenarios)
