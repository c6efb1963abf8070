// Every restore point of a random history restores bit for bit: by our restore, over NBD by qemu-img, and by the reader in Python.
//
// The histories are lived in memory, and what is left in the end is put into files for those who read it. HISTORY_FILES=1 lives them in files,
// HISTORY_RUNS=100 tells that many, HISTORY_STEPS=200 longer ones, STILLPOINT_SEED where to begin.

import { spawnSync } from 'node:child_process'
import { readFileSync, rmSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { FileTarget } from '../../plugins/file/file-target.ts'
import { servePoint } from '../../src/cli/serve-point.ts'
import { Repository } from '../../src/repository/repository.ts'
import { scratchFolder } from '../helpers/control.ts'
import { MemoryTarget } from '../helpers/memory-target.ts'
import { RepositoryHistory } from '../helpers/repository-history.ts'
import { seed as first } from '../helpers/seed.ts'
import { attempt, missing } from '../helpers/tools.ts'

const program = fileURLToPath(new URL('../../../docs/restore-from-files.py', import.meta.url))
const noQemuImg = missing('qemu-img')
const noPython = missing('python3', 'zstd')
const noCryptography = noPython || spawnSync('python3', ['-c', 'import cryptography']).status !== 0

const runs = Number(process.env['HISTORY_RUNS'] ?? 1)
const steps = Number(process.env['HISTORY_STEPS'] ?? 30)

for (let run = 0; run < runs; run++) {
  const seed = first + run
  const passphrase = seed % 2 === 0 ? undefined : 'schlüssel'
  t.test(
    `whatever happens, and whoever is killed when, every restore point is what it was: ${passphrase ? 'encrypted' : 'plain'}`,
    async t => {
      await using stack = new AsyncDisposableStack()
      const folder = await scratchFolder(stack)
      const path = `${folder}/repository`
      const files = stack.use(await FileTarget.open(path))
      const target = process.env['HISTORY_FILES'] ? files : new MemoryTarget()
      const history = stack.use(await RepositoryHistory.begin(target, seed, passphrase))
      try {
        for (let step = 0; step < steps; step++) await history.step()
        const points = await history.checkAll()
        t.comment(`seed ${seed}: ${points.size} restore points after ${history.told.length} events`)
        if (target !== files) for await (const { key } of target.list('')) await files.put(key, (await target.get(key)).body)
        const repository = await Repository.open(files, passphrase === undefined ? {} : { passphrase })
        const out = `${folder}/out`
        for (const [key, disks] of [...points].slice(-2)) {
          const unix = `${folder}/nbd.sock`
          await using _server = noQemuImg ? undefined : await servePoint(repository, { point: key, disk: undefined, unix })
          for (const [disk, bytes] of disks) {
            const isRight = (who: string) => {
              t.ok(readFileSync(out).equals(bytes), `seed ${seed}: ${disk} of ${key} by ${who}`)
              rmSync(out)
            }
            if (!noQemuImg) {
              const uri = `nbd+unix:///${disk}?socket=${unix}`
              const { stderr } = await attempt('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', uri, out])
              t.equal(stderr, '', 'qemu-img has nothing to say')
              isRight('qemu-img')
            }
            if (!(passphrase ? noCryptography : noPython)) {
              const { stderr } = await attempt('python3', [program, path, key, disk, out], {
                env: { ...process.env, ...(passphrase !== undefined && { STILLPOINT_KEY: passphrase }) },
              })
              t.equal(stderr, '', 'Python has nothing to say')
              isRight('Python')
            }
          }
        }
      } catch (error) {
        throw new Error(`seed ${seed}: ${(error as Error).message}\n${history.told.join('\n')}`, { cause: error })
      }
    },
  )
}
