// The command line in a thread that stays: runs what it is told, one call after another, and says what was printed.

import { parentPort } from 'node:worker_threads'
import { runCli } from '../../src/cli/run.ts'
import type { Ended } from './tools.ts'

// Each call adds what a process needs once.
process.stdout.setMaxListeners(0)
process.stderr.setMaxListeners(0)

let stdout = ''
let stderr = ''
process.stdout.write = (text: string | Uint8Array) => {
  stdout += String(text)
  return true
}
process.stderr.write = (text: string | Uint8Array) => {
  stderr += String(text)
  return true
}

async function run(args: readonly string[]): Promise<Ended> {
  stdout = stderr = ''
  process.exitCode = 0
  await runCli(['node', 'stillpoint', ...args], { runDaemon: async () => undefined })
  return { code: process.exitCode, signal: null, stdout, stderr }
}

parentPort!.on('message', (args: readonly string[]) => {
  run(args).then(
    ended => parentPort!.postMessage(ended),
    (error: unknown) => {
      throw error
    },
  )
})
