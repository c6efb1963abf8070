// Persistent bitmaps on the control socket beside qemu-storage-daemon's.

import { compareAll } from '../helpers/compare-daemons.ts'
import { bitmapScenarios } from './scenarios/index.ts'

compareAll(bitmapScenarios)
