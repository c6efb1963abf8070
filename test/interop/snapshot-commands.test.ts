// Our control socket beside qemu-storage-daemon's: snapshots, and nodes that are opened in another way.

import { compareAll } from '../helpers/compare-daemons.ts'
import { snapshotScenarios } from './scenarios/index.ts'

compareAll(snapshotScenarios)
