// Going to the background (`--daemonize`): the program starts itself once more, away from the terminal, and ends when that one is ready to
// serve, or has said why it is not.

import { spawn } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'

const MARK = 'STILLPOINT_IN_BACKGROUND'

export const isInBackground = () => process.env[MARK] !== undefined && process.send !== undefined

/** The exit code of the program in the foreground: 0 as soon as the one in the background is ready. */
export function startInBackground(): Promise<number> {
  const child = spawn(process.execPath, [...process.execArgv, ...process.argv.slice(1)], {
    detached: true,
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    env: { ...process.env, [MARK]: '1' },
  })
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', code => resolve(code ?? 1))
    child.once('message', () => {
      child.unref()
      child.disconnect()
      resolve(0)
    })
  })
}

/**
 * Lets the one in the foreground go, and the terminal. The folder stays: names in options, of images and of sockets, may be relative to it,
 * and sockets are removed by name at the end.
 */
export async function leaveForeground() {
  closeSync(2)
  openSync('/dev/null', 'w') // takes the place of what was closed
  await new Promise(resolve => process.send!('ready', resolve))
  process.disconnect()
}
