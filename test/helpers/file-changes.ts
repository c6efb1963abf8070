// Every change of a file under a folder, at the moment at which it is about to be made: it can be counted, and it can be made to fail.
//
// A daemon that is killed leaves what its system calls have written, and nothing else. So a copy of the folder between two of them is what
// `kill -9` leaves at that moment, without a process that would have to be started and killed for each.
//
// It stands in for Node's own functions, and so it is to be imported before what uses them.

import fs from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export interface FileChange {
  readonly what: string
  readonly path: string
}

/** Called before each. What it throws is what the change fails with. */
type Watcher = (change: FileChange) => void

let watched: { readonly folder: string; readonly watcher: Watcher } | undefined

/** Until disposed. */
export function watchFiles(folder: string, watcher: Watcher): Disposable {
  watched = { folder, watcher }
  return { [Symbol.dispose]: () => (watched = undefined) }
}

/** What a system call of Node's throws. */
export const systemError = (code: string, syscall: string) => Object.assign(new Error(`${code}, ${syscall}`), { code, syscall })

/** Files whose names are gone are nobody's after a crash. */
function tell(what: string, path: string) {
  if (watched && path.startsWith(`${watched.folder}/`) && !path.endsWith(' (deleted)'))
    watched.watcher({ what, path: path.slice(watched.folder.length + 1) })
}

const pathOf = (fd: number) => (watched ? fs.readlinkSync(`/proc/self/fd/${fd}`) : '')

/** Calls with a callback at the end. */
function standInFor(name: 'write' | 'fdatasync') {
  const real = fs[name] as (...args: unknown[]) => void
  const standIn = (...args: unknown[]) => {
    try {
      tell(name, pathOf(args[0] as number))
    } catch (error) {
      process.nextTick(args.at(-1) as (error: unknown) => void, error)
      return
    }
    real(...args)
  }
  Object.assign(fs, { [name]: standIn })
}

/** Functions of paths: what is changed is the last one. */
function standInForPath(name: 'rename' | 'rm' | 'mkdir' | 'open') {
  const real = fs.promises[name] as (...args: unknown[]) => Promise<unknown>
  const standIn = async (...args: unknown[]) => {
    const path = args[name === 'rename' ? 1 : 0]
    const [, flags = 'r'] = args
    const changes = name !== 'open' || (typeof flags === 'number' ? flags & fs.constants.O_CREAT : /[wa]/.test(String(flags)))
    if (changes && typeof path === 'string') tell(name, path)
    return real(...args)
  }
  Object.assign(fs.promises, { [name]: standIn })
}

async function standInForHandles() {
  const path = join(tmpdir(), `stillpoint-handle-${process.pid}`)
  const handle = await fs.promises.open(path, 'w')
  const prototype = Object.getPrototypeOf(handle) as Record<string, (...args: unknown[]) => Promise<unknown>>
  await handle.close()
  await fs.promises.rm(path)
  for (const name of ['write', 'writeFile', 'truncate', 'sync', 'datasync']) {
    const real = prototype[name]!
    prototype[name] = async function standIn(this: { fd: number }, ...args: unknown[]) {
      tell(name, pathOf(this.fd))
      return real.apply(this, args)
    }
  }
}

for (const name of ['write', 'fdatasync'] as const) standInFor(name)
for (const name of ['rename', 'rm', 'mkdir', 'open'] as const) standInForPath(name)
await standInForHandles()
syncBuiltinESMExports()
