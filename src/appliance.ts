// The appliance: every part of the daemon, started one after another and stopped in reverse.

import { hostname } from 'node:os'
import { join } from 'node:path'
import { ActivityFolder } from './bitmaps/activity-folder.ts'
import { PatientLogs } from './bitmaps/patient-logs.ts'
import type { Log } from './base/log.ts'
import { whyNotNative } from './base/native.ts'
import { TlsCredentials } from './base/tls-credentials.ts'
import { Turns } from './base/turns.ts'
import { version } from './base/version.ts'
import { Graph } from './block/graph.ts'
import { Scratch } from './block/scratch.ts'
import { runCommandLine, type CommandLineStep } from './control/command-line.ts'
import { commands } from './control/commands/index.ts'
import type { CommandContext } from './control/context.ts'
import { Events } from './control/events.ts'
import { QmpServer, type Monitor } from './control/qmp-server.ts'
import { drivers } from './drivers/index.ts'
import { filters } from './filters/index.ts'
import { JobRecords } from './jobs/job-records.ts'
import { Jobs } from './jobs/jobs.ts'
import { Backups } from './machines/backups.ts'
import { Configuration, type Reconciled } from './machines/configuration.ts'
import { DiskJobs } from './machines/disk-jobs.ts'
import type { Disk, Machine } from './machines/machine.ts'
import { Machines } from './machines/machines.ts'
import { StateFolder } from './machines/state-folder.ts'
import { accessBy, tlsTerms } from './nbd-server/access.ts'
import { Exports } from './nbd-server/exports.ts'
import { InheritedSockets } from './nbd-server/inherited-places.ts'
import { Listeners } from './nbd-server/listeners.ts'
import { Memory } from './nbd-server/memory.ts'
import { NodeExports } from './nbd-server/node-exports.ts'
import { OnDemandServer } from './nbd-server/on-demand-server.ts'
import type { NbdServerOptions } from './nbd-server/server.ts'
import { openPlace, settingsOf } from './push/open-place.ts'
import { restorePoint } from './restore/restore-point.ts'
import { BackupWorker } from './scheduler/backup-worker.ts'
import { systemClock } from './scheduler/clock.ts'
import { stateSchema } from './scheduler/schedule-state.ts'
import { Scheduler } from './scheduler/scheduler.ts'
import { courier } from './status/courier.ts'
import { Notifier, noticesSchema } from './status/notifier.ts'
import { RepositorySurvey } from './status/repository-survey.ts'
import { RunCounts } from './status/run-counts.ts'
import { statusLine } from './status/status-line.ts'
import { statusPages } from './status/status-pages.ts'
import { StatusServer } from './status/status-server.ts'
import type { Listener, Settings } from './settings/settings.ts'
import { WebServer } from './web/web-server.ts'

/** Bytes that requests of NBD clients may hold, over all servers. */
const NBD_MEMORY = 256 << 20
/** For so long a command waits until what it takes away is closed, as for writes to end. */
const CLOSE_PATIENCE_MS = 30_000

/** What a listener of the configuration asks of its clients. */
async function termsOf({ tls, inTheClear, allow, keepAliveMs, idleMs, speed }: Listener): Promise<Partial<NbdServerOptions>> {
  const credentials =
    tls &&
    ('psk' in tls ? TlsCredentials.pskFile(tls.psk) : TlsCredentials.x509(tls.certificates, { verifyPeer: tls.verifyPeer }))
  return {
    ...(credentials && { tls: tlsTerms(await credentials, inTheClear) }),
    ...(allow && { authorize: accessBy(allow) }),
    ...(keepAliveMs !== undefined && { keepAliveMs }),
    ...(idleMs !== undefined && { idleMs }),
    ...(speed !== undefined && { speed }),
  }
}

export class Appliance implements AsyncDisposable {
  private constructor(
    private readonly parts: AsyncDisposableStack,
    /** Resolves when somebody has asked for the end of it (QMP's quit). */
    readonly quitAsked: Promise<void>,
    /** Reads the configuration again. @throws BadSettings, and all goes on as it was */
    readonly reload: () => Promise<Reconciled>,
    /** A line of how it does. */
    readonly status: () => string,
    private readonly listeners: Listeners,
    private readonly web: WebServer | undefined,
  ) {}

  /**
   * If a later part fails to start, the earlier ones are closed again. What the command line asks for is done once everything is there, and
   * before anybody can connect.
   */
  static async start(settings: Settings, log: Log, commandLine: readonly CommandLineStep[] = []): Promise<Appliance> {
    await using parts = new AsyncDisposableStack()
    const started = new Date()
    const configuration = new Configuration(settings, log)
    const quit = Promise.withResolvers<void>()
    const events = new Events()
    const turns = new Turns({
      tell: (what, seconds) =>
        log.warn('commands wait for one that does not come to its end; look at the disks that it is about', { what, seconds }),
    })

    if (whyNotNative)
      log.warn("image files are not locked against other programs; 'stillpoint doctor' says what mends it", {
        reason: whyNotNative,
      })
    // The last to go: clients are told how everything else ends.
    const control = parts.use(new AsyncDisposableStack())
    const state = settings.state === undefined ? undefined : parts.use(await StateFolder.open(settings.state))
    const logs = state && new PatientLogs(new ActivityFolder(join(state.path, 'activity')))
    const restorePoints = restorePoint(async name => openPlace(name, settingsOf(name, configuration.current.repositories), log))
    const graph = parts.use(
      new Graph([...drivers, restorePoints, ...filters], {
        logs,
        patienceMs: CLOSE_PATIENCE_MS,
        inTurn: work => turns.take(work, 'the end of what a disk that hung has held up'),
      }),
    )
    const scratch = new Scratch(graph, settings.scratch.path, settings.scratch.limit, settings.scratch.timeoutMs / 1000)
    const exports = new Exports()
    graph.watch((name, event) => {
      if (event.type === 'bitmaps-at-risk') {
        log.warn('bitmaps are at risk', { node: name, err: event.error })
        events.emit('BITMAPS_AT_RISK', { 'node-name': name, reason: event.error.message })
      }
      if (event.type === 'closes-late') log.warn('a node is closed late', { node: name, err: event.error })
      if (event.type !== 'image-corrupted') return
      log.error('an image contradicts itself', { node: name, err: event.error })
      events.emit('BLOCK_IMAGE_CORRUPTED', { device: '', 'node-name': name, msg: event.error.message, fatal: event.fatal })
    })
    const nodeExports = parts.use(new NodeExports({ graph, emit: events.emit, turns, log }))
    const machines = parts.use(
      await Machines.open(settings.machines, { graph, exports, nodeExports, state, log, emit: events.emit }),
    )
    const memory = new Memory(NBD_MEMORY)
    const inherited = InheritedSockets.fromEnvironment(log)
    const placesOf = ({ nbd }: Settings) =>
      nbd.map(listener => ({
        key: JSON.stringify(listener),
        address: 'unix' in listener ? { unix: listener.unix, mode: listener.mode } : { host: listener.host, port: listener.port },
        inherited: () => inherited.take(listener),
        options: async () => ({ exports, log, memory, ...(await termsOf(listener)) }),
      }))
    const listeners = parts.use(await Listeners.open(placesOf(settings)))
    machines.recover()
    const configured = settings.nbd.length > 0 ? exports : undefined
    const onDemandServer = parts.use(new OnDemandServer(configured, nodeExports, { log, memory }))
    const backups = parts.use(
      new Backups({
        graph,
        scratch,
        exports,
        nodeExports,
        emit: events.emit,
        turns,
        log,
        get expireMs() {
          return configuration.current.sessions.expireMs
        },
        get repositories() {
          return configuration.current.repositories
        },
      }),
    )
    const jobs = new Jobs(events.emit, turns, state && (await JobRecords.open(state, log)), machines)
    parts.defer(() => jobs.cancelAll())
    const diskJobs = new DiskJobs(jobs, turns)

    const checkUnused = (machine: Machine, disk: Disk) => {
      backups.checkNone(machine)
      diskJobs.checkFree(machine, disk)
      machine.checkUnused(disk)
    }
    configuration.follow(({ machines: wanted }) => machines.reconcile(wanted, checkUnused))
    configuration.follow(next => listeners.reconcile(placesOf(next)))
    configuration.follow(({ scratch: { limit, timeoutMs } }) => {
      scratch.configure(limit, timeoutMs / 1000)
      return { changes: [], problems: [] }
    })
    const worker = new BackupWorker({
      turns,
      log,
      machines,
      backups,
      diskJobs,
      get repositories() {
        return configuration.current.repositories
      },
    })
    // Runs may end before there is somebody to tell.
    const telling: { notifier?: Notifier } = {}
    const counts = new RunCounts(() => scheduler.names)
    const scheduler: Scheduler = parts.use(
      await Scheduler.start(Object.values(settings.schedules), settings.limits.backups, {
        worker,
        store: {
          read: async () => state?.read('schedules', stateSchema),
          write: async schedules => state?.write('schedules', schedules),
        },
        clock: systemClock,
        log,
        emit: events.emit,
        ended: (schedule, run) => {
          counts.ended(schedule.name, run)
          telling.notifier?.ended(schedule, run)
        },
      }),
    )
    const notifier = parts.use(
      await Notifier.start({
        courier,
        store: {
          read: async () => state?.read('notices', noticesSchema),
          write: async notices => state?.write('notices', notices),
        },
        log,
        host: hostname(),
        now: Date.now,
        settings: () => configuration.current.notify,
        schedules: () =>
          scheduler.names.map(name => {
            const { settings: schedule, state: remembered } = scheduler.get(name)
            return { settings: schedule, good: remembered.good }
          }),
      }),
    )
    telling.notifier = notifier
    if (settings.metrics) {
      const measured = {
        started,
        configuration,
        machines,
        exports,
        listeners,
        backups,
        jobs,
        scratch,
        scheduler,
        counts,
        notifier,
        survey: parts.use(new RepositorySurvey(log, () => {})),
      }
      parts.use(await StatusServer.listen(settings.metrics, statusPages(measured), log))
    }
    configuration.follow(async ({ schedules, limits }) => {
      await scheduler.reconcile(Object.values(schedules), limits.backups)
      return { changes: [], problems: [] }
    })

    const { socket } = settings.control
    const monitors: Monitor[] = socket === undefined ? [] : [{ path: socket, fd: inherited.take({ unix: socket }) }]
    const context: CommandContext = {
      emit: events.emit,
      turns,
      log,
      graph,
      jobs,
      scratch,
      exports,
      nodeExports,
      onDemandServer,
      machines,
      backups,
      diskJobs,
      configuration,
      scheduler,
      quit: quit.resolve,
      describeDaemon: () => ({
        version,
        pid: process.pid,
        started: started.toISOString(),
        config: settings.file,
        'config-problem': configuration.problem,
        state: settings.state,
        control: monitors.flatMap(monitor => ('path' in monitor ? [monitor.path] : [])),
        nbd: configuration.current.nbd.map(listener =>
          'unix' in listener
            ? { type: 'unix', path: listener.unix }
            : { type: 'inet', host: listener.host, port: listener.port, ...(listener.tls && { tls: true }) },
        ),
        scratch: { path: scratch.folder, used: scratch.used, limit: scratch.limit },
      }),
    }
    const watched = { ...context, clients: () => listeners.connections }
    const web = settings.web && parts.use(await WebServer.listen(settings.web, { context: watched, events, log }))
    monitors.push(...(await runCommandLine(commandLine, context)))
    for (const { fd, address } of inherited.left)
      log.warn('a socket was passed that is no place of the configuration, and nobody answers there', { fd, address })
    const server = control.use(await QmpServer.listen({ monitors, commands, context, events }))
    parts.defer(() => server.stop())
    const reload = () => turns.take(() => configuration.reload())
    const status = () => statusLine({ machines, backups, jobs })
    return new Appliance(parts.move(), quit.promise, reload, status, listeners, web)
  }

  /** Where NBD clients of the configuration connect; the port is the system's choice where it says 0. */
  get nbdAddresses() {
    return this.listeners.addresses
  }

  /** Where the status page is, where there is one. */
  get webAddress() {
    return this.web?.address
  }

  /** The last opened is closed first: no more commands, jobs and sessions ended, requests of clients drained, images closed. */
  async [Symbol.asyncDispose]() {
    await this.parts[Symbol.asyncDispose]()
  }
}
