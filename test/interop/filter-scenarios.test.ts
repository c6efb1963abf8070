// The filters that QEMU has, and its encrypted volumes, beside qemu-storage-daemon's.

import { compareAll } from '../helpers/compare-daemons.ts'
import { filterScenarios } from './scenarios/index.ts'

compareAll(filterScenarios)
