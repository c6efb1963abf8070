// Others restore what a repository holds: qemu-img over NBD from what we serve, and the reader in Python from files.

import { spawnSync } from 'node:child_process'
import { readFileSync, rmSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { FileTarget } from '../../plugins/file/file-target.ts'
import { servePoint } from '../../src/cli/serve-point.ts'
import type { Target } from '../../src/repository/target.ts'
import { scratchFolder } from './qemu.ts'
import { open } from './repository-deeds.ts'
import { attempt, missing } from './tools.ts'

const program = fileURLToPath(new URL('../../../docs/restore-from-files.py', import.meta.url))
const noQemuImg = missing('qemu-img')
const noPython = missing('python3', 'zstd')
const noCryptography = noPython || spawnSync('python3', ['-c', 'import cryptography']).status !== 0

/** For what hangs: a busy machine takes its time. */
export const PATIENCE_MS = 300_000

/** Sentences; empty when each disk of each restore point is what it must be, and nobody had anything to say. */
export async function judge(
  target: Target,
  points: Iterable<readonly [key: string, disks: ReadonlyMap<string, Buffer>]>,
  passphrase: string | undefined,
): Promise<string[]> {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const path = `${folder}/repository`
  const files = stack.use(await FileTarget.open(path))
  for await (const { key } of target.list('')) await files.put(key, (await target.get(key)).body)
  const repository = await open(target, passphrase)
  const out = `${folder}/out`
  const wrong: string[] = []
  for (const [key, disks] of points) {
    const unix = `${folder}/nbd.sock`
    await using _server = noQemuImg ? undefined : await servePoint(repository, { point: key, disk: undefined, unix })
    for (const [disk, bytes] of disks) {
      const hear = async (who: string, ...[tool, args, options]: Parameters<typeof attempt>) => {
        const { code, stderr } = await attempt(tool, args, { timeoutMs: PATIENCE_MS, ...options })
        if (code !== 0 || stderr !== '') wrong.push(`${who} of ${disk} of ${key}: ${code} ${stderr}`)
        else if (!readFileSync(out).equals(bytes)) wrong.push(`${who} restores another ${disk} of ${key}`)
        rmSync(out, { force: true })
      }
      if (!noQemuImg)
        await hear('qemu-img', 'qemu-img', ['convert', '-f', 'raw', '-O', 'raw', `nbd+unix:///${disk}?socket=${unix}`, out])
      if (!(passphrase === undefined ? noPython : noCryptography))
        await hear('Python', 'python3', [program, path, key, disk, out], {
          env: passphrase === undefined ? {} : { STILLPOINT_KEY: passphrase },
        })
    }
  }
  return wrong
}
