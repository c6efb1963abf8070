// A file that hangs when it is told to, as one on a network file system whose server is gone: every read and write of it waits in the kernel.
// It is served by qemu-storage-daemon over FUSE, and hangs while that is stopped.

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

/** Why there is none here, or false. */
export const hangingFileMissing = missing()

function missing(): string | false {
  const { error, stdout } = spawnSync('qemu-storage-daemon', ['--help'], { encoding: 'utf8' })
  if (error) return 'qemu-storage-daemon is not installed (apt-get install qemu-system-common)'
  if (!/type=\]fuse/.test(stdout)) return 'qemu-storage-daemon was built without FUSE'
  try {
    closeSync(openSync('/dev/fuse', 'r+'))
    return false
  } catch (thrown) {
    return `FUSE cannot be used here: ${(thrown as Error).message}`
  }
}

export interface HangingFile {
  hang(): void
  goOn(): void
  /** For good: whoever has it open hears that it is not connected. */
  die(): Promise<void>
}

/** Of `size` bytes, at `path`; what it holds is in a file beside it. Ends with the stack. */
export async function hangingFile(stack: AsyncDisposableStack, path: string, size: number): Promise<HangingFile> {
  const behind = `${path}.behind`
  writeFileSync(path, '')
  writeFileSync(behind, '')
  truncateSync(behind, size)
  const child = spawn(
    'qemu-storage-daemon',
    [
      ['--blockdev', `driver=file,filename=${behind},node-name=behind`],
      ['--export', `type=fuse,id=e,node-name=behind,mountpoint=${path},writable=on`],
    ].flat(),
    { stdio: ['ignore', 'ignore', 'pipe'] },
  )
  const gone = once(child, 'exit')
  let said = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text))
  const die = async () => {
    child.kill('SIGKILL')
    await gone
    spawnSync('umount', ['-l', path])
  }
  const file = { hang: () => void child.kill('SIGSTOP'), goOn: () => void child.kill('SIGCONT'), die }
  stack.defer(async () => {
    file.goOn()
    child.kill()
    await gone
  })
  while (statSync(path).size !== size) {
    if (child.exitCode !== null) throw new Error(`qemu-storage-daemon does not serve ${path}: ${said}`)
    await sleep(10)
  }
  return file
}
