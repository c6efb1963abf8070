// Runs programs and says what they took: time, processor, and the most memory that they and their children had.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { open, readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { find } from './demo/tools.ts'

export interface Measured {
  readonly seconds: number
  /** Bytes. */
  readonly memory: number
}

const LOOK_MS = 20

/**
 * With `durable`, until what is there, a file or a folder, would survive a power cut: who does not see to it is not faster for that.
 * @throws Error with what it said when it failed
 */
export async function measured(
  program: string,
  args: readonly string[],
  { env = {}, durable }: { readonly env?: Readonly<Record<string, string>>; readonly durable?: string } = {},
): Promise<Measured> {
  const begun = performance.now()
  const child = spawn(find(program) ?? program, args, { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, ...env } })
  let said = ''
  child.stderr.on('data', (data: Buffer) => (said += data.toString()))
  const memory = watchMemory(child.pid!)
  const [code] = (await once(child, 'close')) as [number | null]
  if (code !== 0) throw new Error(`${program} ${args.slice(0, 3).join(' ')} has failed:\n${said}`)
  const most = memory.end()
  if (durable !== undefined) await sync(durable)
  return { seconds: (performance.now() - begun) / 1000, memory: most }
}

/** What is synced already costs next to nothing. */
async function sync(path: string) {
  const files = (await stat(path)).isFile()
    ? [path]
    : (await readdir(path, { recursive: true, withFileTypes: true }))
        .filter(entry => entry.isFile())
        .map(entry => join(entry.parentPath, entry.name))
  for (const name of files) {
    await using file = await open(name)
    await file.sync()
  }
}

/**
 * Looks from time to time how much memory a process and its children have had at most. Of its main thread's children only: to look at each of a
 * hundred threads of ours took 1.5 ms each time.
 */
export function watchMemory(pid: number) {
  let most = 0
  const look = () => void (most = Math.max(most, mostMemory(pid)))
  look()
  const timer = setInterval(look, LOOK_MS)
  return {
    end() {
      clearInterval(timer)
      look()
      return most
    },
  }
}

/** From what the kernel remembers (VmHWM); 0 for a process that has ended. */
function mostMemory(pid: number): number {
  try {
    const [, kib = '0'] = /^VmHWM:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? []
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').filter(Boolean)
    return Number(kib) * 1024 + children.reduce((sum, child) => sum + mostMemory(Number(child)), 0)
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) return 0
    throw error
  }
}
