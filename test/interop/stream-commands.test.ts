// Our control socket beside qemu-storage-daemon's: block-stream.

import { compareAll } from '../helpers/compare-daemons.ts'
import { streamScenarios } from './scenarios/index.ts'

compareAll(streamScenarios)
