// qemu-storage-daemon as a judge of the control socket.

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { scratchFolder } from './control.ts'

/** Why tests against it are skipped, or false. */
export const qsdMissing =
  spawnSync('qemu-storage-daemon', ['--version']).error !== undefined &&
  'qemu-storage-daemon is not installed (apt-get install qemu-system-common)'

/** Starts one that ends with the stack; returns the path of its QMP socket. */
export async function startQsd(stack: AsyncDisposableStack) {
  const folder = await scratchFolder(stack)
  const path = join(folder, 'qmp.sock')
  // It listens by the time that this is there. A client that only tried would be in the way of the next: it takes one at a time.
  const pidFile = join(folder, 'pid')
  const chardev = `socket,id=qmp,path=${path},server=on,wait=off`
  const child = spawn('qemu-storage-daemon', ['--chardev', chardev, '--monitor', 'qmp', '--pidfile', pidFile], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  const said: Buffer[] = []
  child.stderr.on('data', (data: Buffer) => said.push(data))
  stack.defer(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    const gone = once(child, 'exit')
    child.kill()
    await gone
  })
  while (!existsSync(pidFile)) {
    if (child.exitCode !== null) throw new Error(`qemu-storage-daemon did not start: ${Buffer.concat(said).toString()}`)
    await sleep(10)
  }
  return path
}
