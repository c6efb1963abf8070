// A repository with two restore points of a machine of two disks, and `stillpoint serve` of them as a process of its own.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { openTarget } from '../../src/push/target.ts'
import { scratchFolder } from './qemu.ts'
import { newRepository, pushDisks, sourceOf } from './push-point.ts'
import { diskContent, randomBytes } from './random-bytes.ts'
import { silent } from './s3.ts'
import { MAIN } from './stillpoint.ts'

export const CHUNK = 65536

/** What it prints of a disk. */
export interface ServedDisk {
  readonly disk: string
  readonly size: number
  readonly uri: string
  readonly overlay?: string
  readonly point?: string
}

export async function servedRepository(stack: AsyncDisposableStack) {
  const folder = await scratchFolder(stack)
  const path = (name: string) => `${folder}/${name}`
  const config = path('stillpoint.yaml')
  writeFileSync(config, JSON.stringify({ repositories: { local: { plugin: 'file', path: 'backup' } } }))

  const older = { root: diskContent(120 * CHUNK, 1), data: diskContent(9 * CHUNK + 1536 + 7, 2) }
  // It has grown since.
  const newer = { root: Buffer.concat([older.root, diskContent(20 * CHUNK + 512, 4)]), data: older.data }
  newer.root.set(randomBytes(1000, 3), 5 * CHUNK + 100)
  newer.root.fill(0, 40 * CHUNK, 44 * CHUNK)
  const target = stack.use(await openTarget({ plugin: 'file', path: path('backup') }, { log: silent }))
  const repository = await newRepository(target)
  const pushed = async (disks: typeof older) => {
    const { key } = await pushDisks(repository, [
      { name: 'root', source: sourceOf(disks.root) },
      { name: 'data', source: sourceOf(disks.data) },
    ])
    return key.slice('points/'.length)
  }
  const first = await pushed(older)
  const second = await pushed(newer)
  writeFileSync(path('root'), newer.root)
  writeFileSync(path('data'), newer.data)

  const serve = Object.assign((...args: string[]) => from('local', ...args), { from })

  /** A repository, or an archive. */
  async function from(...args: string[]) {
    const child = spawn(process.execPath, [MAIN, 'serve', '--config', config, ...args, '--json'])
    const exit = once(child, 'exit')
    let said = ''
    let failed = ''
    child.stdout.on('data', (data: Buffer) => (said += data.toString()))
    child.stderr.on('data', (data: Buffer) => (failed += data.toString()))
    while (!said.endsWith('\n')) {
      if (child.exitCode !== null) throw new Error(failed)
      await sleep(20)
    }
    const disks = said
      .trim()
      .split('\n')
      .map(line => JSON.parse(line) as ServedDisk)
    return {
      disks,
      /** Waits until it has said one of them. */
      async says(...words: readonly string[]) {
        while (!words.some(word => `${said}${failed}`.includes(word))) {
          if (child.exitCode !== null) throw new Error(failed)
          await sleep(20)
        }
      },
      async kill() {
        child.kill('SIGKILL')
        await exit
      },
      async stop() {
        child.kill('SIGTERM')
        return exit
      },
    }
  }

  return { path, config, older, newer, first, second, serve }
}
