// The program: the command line, and the daemon that it starts.

import type { DaemonOptions } from './cli/commands/daemon.ts'
import { runCli } from './cli/program.ts'
import type { Settings } from './settings/settings.ts'

/** From its start until somebody ends it. The first signal ends it in an orderly way, the second at once. */
async function runDaemon(
  settings: Settings,
  { logLevel, commandLine, pidFile, daemonize }: DaemonOptions,
): Promise<number | void> {
  const background = daemonize ? await import('./base/daemonize.ts') : undefined
  if (background && !background.isInBackground()) return background.startInBackground()
  // Not for commands that only talk to the daemon: it is most of the program.
  const [{ Appliance }, { createLog }] = await Promise.all([import('./appliance.ts'), import('./base/log.ts')])
  const log = createLog(logLevel)
  // What nobody has foreseen: guests are served on, as well as may be, and the bug is told.
  process.on('unhandledRejection', error => log.error('a bug: nobody dealt with this failure', { err: error }))

  const stop = Promise.withResolvers<void>()
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
    process.on(signal, () => {
      stop.resolve()
      process.once(signal, () => process.exit(1))
      log.info(`stops because of ${signal}; a second one ends it at once`)
    })
  }
  await using parts = new AsyncDisposableStack()
  // Where there is no socket, and the only client was on standard input, nothing else keeps the program from ending.
  const alive = setInterval(() => {}, 2 ** 31 - 1)
  parts.defer(() => clearInterval(alive))
  if (pidFile !== undefined) parts.use(await (await import('./base/pid-file.ts')).writePidFile(pidFile))
  const appliance = parts.use(await Appliance.start(settings, log, commandLine))
  log.info('ready', { machines: Object.keys(settings.machines).length, control: settings.control.socket })
  await background?.leaveForeground()
  await Promise.race([stop.promise, appliance.quitAsked])
  await parts[Symbol.asyncDispose]()
  log.info('stopped')
}

await runCli(process.argv, { runDaemon })
