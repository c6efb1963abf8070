// What a command may see and do beside its arguments. Whoever adds a part of the appliance that commands need adds a member here.

import type { Log } from '../base/log.ts'
import type { Turns } from '../base/turns.ts'
import type { Graph } from '../block/graph.ts'
import type { Scratch } from '../block/scratch.ts'
import type { Jobs } from '../jobs/jobs.ts'
import type { DiskJobs } from '../machines/disk-jobs.ts'
import type { Backups } from '../machines/backups.ts'
import type { Configuration } from '../machines/configuration.ts'
import type { Machines } from '../machines/machines.ts'
import type { Exports } from '../nbd-server/exports.ts'
import type { NodeExports } from '../nbd-server/node-exports.ts'
import type { Scheduler } from '../scheduler/scheduler.ts'
import type { OnDemandServer } from '../nbd-server/on-demand-server.ts'
import type { ClientTransaction } from './client-transaction.ts'
import type { AnyCommand } from './command.ts'
import type { DaemonInfo } from './commands/query-daemon.ts'

/** The appliance, as commands see it: one object for all of them. */
export interface CommandContext {
  /** Tells every client that has negotiated. What a command emits arrives before its reply. */
  emit(event: string, data?: object): void
  /** Commands are in a turn already; this is for what they start and do not wait for. */
  readonly turns: Turns
  readonly log: Log
  readonly graph: Graph
  readonly jobs: Jobs
  readonly scratch: Scratch
  /** What NBD clients find on the servers of the configuration, by name. */
  readonly exports: Exports
  /** All exports, by id. */
  readonly nodeExports: NodeExports
  readonly onDemandServer: OnDemandServer
  readonly machines: Machines
  readonly backups: Backups
  readonly diskJobs: DiskJobs
  readonly configuration: Configuration
  readonly scheduler: Scheduler
  describeDaemon(): DaemonInfo
  /** Ends the appliance in an orderly way, after the command that asked for it has been answered. */
  quit(): void
}

/** The connection that a command came over. */
export interface Session {
  /** Ends the negotiation: from now on other commands are taken, and events sent. */
  negotiate(capabilities: readonly string[]): void
  /** What it has begun last, over or not; while it is open, actions go there. */
  transaction: ClientTransaction | undefined
  /** All commands there are. */
  readonly commands: readonly AnyCommand[]
}
