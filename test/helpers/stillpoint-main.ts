// The program with a daemon that is only told: it prints what it would run with.

import { runCli } from '../../src/cli/run.ts'

await runCli(process.argv, {
  runDaemon: async (settings, options) => void process.stdout.write(`${JSON.stringify({ settings, options })}\n`),
})
