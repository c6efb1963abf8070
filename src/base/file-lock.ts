// A lock on a file that goes with the process that holds it, however that ends.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { open } from 'node:fs/promises'
import { native } from './native.ts'
import { systemFault } from './system-fault.ts'

/**
 * Locks the file, which is made where it is not there, until disposed or until the process ends. Undefined when another process has it.
 * Without native help util-linux's `flock` does it: the lock belongs to the open file, which we share with it.
 */
export async function lockFile(path: string): Promise<AsyncDisposable | undefined> {
  try {
    await using opened = new AsyncDisposableStack()
    const file = opened.use(await open(path, 'a', 0o600))
    if (!(await (native ? native.lock(file.fd) : lockByProgram(file.fd)))) return undefined
    return opened.move()
  } catch (error) {
    throw systemFault(`cannot lock ${path}`, error)
  }
}

async function lockByProgram(fd: number): Promise<boolean> {
  const child = spawn('flock', ['--exclusive', '--nonblock', '--conflict-exit-code', '9', '3'], {
    stdio: ['ignore', 'ignore', 'inherit', fd],
  })
  const [code] = (await once(child, 'exit')) as [number | null]
  if (code !== 0 && code !== 9) throw Object.assign(new Error(`flock ended with ${code}`), { code: 'EIO' })
  return code === 0
}
