// Our control socket beside qemu-storage-daemon's: block-commit.

import { compareAll } from '../helpers/compare-daemons.ts'
import { commitScenarios } from './scenarios/index.ts'

compareAll(commitScenarios)
