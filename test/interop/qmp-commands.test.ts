// Our control socket beside qemu-storage-daemon's: nodes, objects, bitmaps, exports, chains, views and backups.

import { compareAll } from '../helpers/compare-daemons.ts'
import { scenarios } from './scenarios/index.ts'

compareAll(scenarios)
