// Our control socket beside qemu-storage-daemon's: jobs that move disks.

import { compareAll } from '../helpers/compare-daemons.ts'
import { jobScenarios } from './scenarios/index.ts'

compareAll(jobScenarios)
