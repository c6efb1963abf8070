// The program: the command line, and the daemon that it starts.

// eslint-disable-next-line import/no-unassigned-import -- it says how many threads there are
import './base/threads.ts'
import type { Appliance } from './appliance.ts'
import { BadSettings } from './base/errors.ts'
import type { Log } from './base/log.ts'
import type { ServiceManager } from './base/service-manager.ts'
import type { DaemonOptions } from './cli/commands/daemon.ts'
import { runCli } from './cli/run.ts'
import type { Settings } from './settings/settings.ts'

/** From its start until somebody ends it. The first signal ends it in an orderly way, the second at once. */
async function runDaemon(
  settings: Settings,
  { logLevel, commandLine, pidFile, daemonize }: DaemonOptions,
): Promise<number | void> {
  const background = daemonize ? await import('./base/daemonize.ts') : undefined
  if (background && !background.isInBackground()) return background.startInBackground()
  // Not for commands that only talk to the daemon: it is most of the program.
  const [{ Appliance: Parts }, { createLog }, { keepLargeMemoryApart }] = await Promise.all([
    import('./appliance.ts'),
    import('./base/log.ts'),
    import('./base/heap.ts'),
  ])
  keepLargeMemoryApart()
  const log = createLog(logLevel)
  // What nobody has foreseen: guests are served on, as well as may be, and the bug is told.
  process.on('unhandledRejection', error => log.error('a bug: nobody dealt with this failure', { err: error }))

  const { ServiceManager } = await import('./base/service-manager.ts')
  const manager = await ServiceManager.fromEnvironment(process.env, log)
  const stop = Promise.withResolvers<void>()
  // Without a configuration there is nothing to read again, and it ends, as qemu-storage-daemon.
  const ending = ['SIGTERM', 'SIGINT', ...(settings.file === undefined ? (['SIGHUP'] as const) : [])] as const
  for (const signal of ending) {
    process.on(signal, () => {
      stop.resolve()
      process.once(signal, () => process.exit(1))
      log.info(`stops because of ${signal}; a second one ends it at once`)
    })
  }
  const running: { appliance?: Appliance; reloadLater?: boolean } = {}
  if (settings.file !== undefined)
    process.on('SIGHUP', () => {
      if (running.appliance) reload(running.appliance, manager, log)
      else running.reloadLater = true
    })
  await using parts = new AsyncDisposableStack()
  // Where there is no socket, and the only client was on standard input, nothing else keeps the program from ending.
  const alive = setInterval(() => {}, 2 ** 31 - 1)
  parts.defer(() => clearInterval(alive))
  if (pidFile !== undefined) parts.use(await (await import('./base/pid-file.ts')).writePidFile(pidFile))
  const appliance = (running.appliance = parts.use(await Parts.start(settings, log, commandLine)))
  log.info('ready', { machines: Object.keys(settings.machines).length, control: settings.control.socket })
  await background?.leaveForeground()
  await manager?.ready(appliance.status)
  // The file may have been changed since it was read.
  if (running.reloadLater) reload(appliance, manager, log)
  await Promise.race([stop.promise, appliance.quitAsked])
  await manager?.stopping()
  await parts[Symbol.asyncDispose]()
  log.info('stopped')
}

/** A configuration that is not good has been told by whoever read it. */
function reload(appliance: Appliance, manager: ServiceManager | undefined, log: Log) {
  const work = manager ? manager.reloading(appliance.reload) : appliance.reload()
  work.catch((error: unknown) => {
    if (!(error instanceof BadSettings)) log.error('the configuration could not be read again', { err: error })
  })
}

await runCli(process.argv, { runDaemon })
