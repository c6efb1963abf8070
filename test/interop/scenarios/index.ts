// All scenarios, by topic, in the order in which they are done.

import type { Scenario } from '../../helpers/scenario.ts'
import { backups } from './backup.ts'
import { bitmaps } from './bitmaps.ts'
import { chains } from './chains.ts'
import { commits, streams } from './chain-jobs.ts'
import { creations } from './create.ts'
import { drives } from './drives.ts'
import { exports } from './exports.ts'
import { failingCommits } from './failing-commits.ts'
import { filters } from './filters.ts'
import { fleecing } from './fleecing.ts'
import { luks } from './luks.ts'
import { managers } from './managers.ts'
import { mirrors } from './mirror.ts'
import { nodes } from './nodes.ts'
import { objects } from './objects.ts'
import { oddCases } from './odd-cases.ts'
import { oddJobs } from './odd-jobs.ts'
import { oddOptions } from './odd-options.ts'
import { oddRequests } from './odd-requests.ts'
import { persistentBitmaps } from './persistent-bitmaps.ts'
import { snapshots } from './snapshots.ts'

export const scenarios: Readonly<Record<string, readonly Scenario[]>> = {
  nodes,
  objects,
  bitmaps,
  exports,
  chains,
  fleecing,
  backups,
}

/** Those of jobs that move disks: a test file of their own. */
export const jobScenarios: Readonly<Record<string, readonly Scenario[]>> = { creations, mirrors, drives }

/** Snapshots and what changes open nodes: a test file of their own as well. */
export const snapshotScenarios: Readonly<Record<string, readonly Scenario[]>> = { snapshots }

/** Those of jobs that change backing chains: likewise, a file for each kind. */
export const streamScenarios: Readonly<Record<string, readonly Scenario[]>> = { streams }
export const commitScenarios: Readonly<Record<string, readonly Scenario[]>> = { commits, failingCommits }

/** Those of bitmaps that are kept with images: a test file of their own. */
export const bitmapScenarios: Readonly<Record<string, readonly Scenario[]>> = { persistentBitmaps }

/** Odd cases: likewise. */
export const oddScenarios: Readonly<Record<string, readonly Scenario[]>> = {
  oddCases,
  oddJobs,
  managers,
  oddRequests,
  oddOptions,
}

/** Filters and encryption: likewise. */
export const filterScenarios: Readonly<Record<string, readonly Scenario[]>> = { filters, luks }
