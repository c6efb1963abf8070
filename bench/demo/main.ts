// npm run demo [-- IMAGE]: the whole road on real disks, with the proof at its end.
//
// Two disks are served to a guest that writes all the time. A full backup is pulled, then an incremental one, and both are put together.
// What the guest remembers of its writes says what each frozen instant held, and the backups are compared with that byte for byte.

import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { copyFile, constants, mkdir, mkdtemp, rm, stat, statfs, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { formatSize } from '../../src/base/units.ts'
import { copyOf, makeData, makeRoot, type DemoDisk } from './disks.ts'
import { Guest } from './guest.ts'
import { pullFull, pullIncrement, type Pulled } from './pull.ts'
import { find, run, startDaemon, stillpoint } from './tools.ts'

interface Session {
  readonly disks: readonly { readonly disk: string; readonly size: number; readonly bitmap?: string; readonly dirty?: number }[]
}

const USAGE = `usage: npm run demo [-- IMAGE] [--keep]
IMAGE is a disk image of yours in place of the demo's own; it is copied, and never written to. --keep leaves the folder.`

const began = performance.now()
const seconds = (from = began) => `${((performance.now() - from) / 1000).toFixed(1)} s`
const say = (text: string) => console.log(text)
const step = (text: string) => say(`\n[${seconds().padStart(6)}] ${text}`)

const args = process.argv.slice(2)
const keep = args.includes('--keep')
const images = args.filter(arg => !arg.startsWith('-'))
if (images.length > 1 || args.some(arg => arg.startsWith('-') && arg !== '--keep')) {
  console.error(USAGE)
  process.exit(2)
}
async function demo(image: string | undefined) {
  await using stack = new AsyncDisposableStack()
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-demo-'))
  stack.defer(async () => {
    if (keep) say(`\nAll of it is in ${folder}`)
    else await rm(folder, { recursive: true })
  })
  await checkSpace(folder, image)

  step('Two disks')
  const disks = [image === undefined ? await makeRoot(folder) : await copyOf(resolve(image), folder), await makeData(folder)]
  for (const { name, image, what } of disks) say(`  ${name}: ${formatSize((await stat(image)).size)}, ${what}`)
  const models = await copies(disks, 'model')

  step('The daemon serves them, and a guest writes to both all the time')
  const config = join(folder, 'stillpoint.yaml')
  const [control, nbd] = [join(folder, 'control.sock'), join(folder, 'nbd.sock')]
  await writeFile(config, configuration(disks))
  await startDaemon(stack, config)
  const uri = (name: string) => `nbd+unix:///${name}?socket=${nbd}`
  const guest = stack.use(await Guest.connect(disks, name => uri(`db/${name}`)))
  guest.start()
  await sleep(1000)
  say(`  ${guest.written} writes in the first second`)

  step('stillpoint backup start db --pull --name full --checkpoint full')
  const full = await instant(guest, () =>
    stillpoint<Session>(control, 'backup', 'start', 'db', '--pull', '--name', 'full', '--checkpoint', 'full'),
  )
  const backups = disks.map(({ name }) => join(folder, `${name}.full.raw`))
  for (const [index, { name }] of disks.entries()) {
    const started = performance.now()
    const pulled = await pullFull(uri(`full/${name}`), backups[index]!, index === 0 ? 'nbdcopy' : 'qemu-img')
    told(name, pulled, started, (await stat(disks[index]!.image)).size)
  }
  await stillpoint(control, 'backup', 'finish', 'full')
  const fullCount = await guest.writesIn(backups, full.before, full.after)
  await guest.replay(models, 0, fullCount)
  await compare(disks, backups, models, fullCount)

  step('The guest goes on')
  await sleep(1500)
  say(`  ${guest.written - fullCount} writes since the full backup`)

  step('stillpoint backup start db --pull --name more --since full --checkpoint more')
  const more = await instant(guest, () =>
    stillpoint<Session>(control, 'backup', 'start', 'db', '--pull', '--name', 'more', '--since', 'full', '--checkpoint', 'more'),
  )
  const restored = disks.map(({ name }) => join(folder, `${name}.restored.raw`))
  for (const [index, { name }] of disks.entries()) {
    const started = performance.now()
    const { bitmap, dirty, size } = more.answer.disks[index]!
    const pulled = await pullIncrement(
      uri(`more/${name}`),
      bitmap!,
      backups[index]!,
      join(folder, `${name}.more.qcow2`),
      restored[index]!,
    )
    say(`  ${name}: ${formatSize(dirty!)} dirty`)
    told(name, pulled, started, size)
  }
  await stillpoint(control, 'backup', 'finish', 'more')
  const moreCount = await guest.writesIn(restored, more.before, more.after)
  await guest.replay(models, fullCount, moreCount)
  await compare(disks, restored, models, moreCount)

  for (const [index, { name, hasFileSystem }] of disks.entries()) {
    if (!hasFileSystem) continue
    step(`e2fsck -fn ${basename(restored[index]!)}`)
    const report = await run('e2fsck', ['-f', '-n', restored[index]!])
    say(
      `  clean: ${report
        .trim()
        .split('\n')
        .at(-1)!
        .replace(/^.*?: /, `${name}: `)}`,
    )
  }
  step(`Done. ${guest.written} writes of the guest went on all the while, and both backups are what their instants were.`)
}

/** Does it, and says how many of the guest's writes had been answered before and after. */
async function instant<Answer>(guest: Guest, begin: () => Promise<Answer>) {
  const before = guest.written
  const answer = await begin()
  return { before, after: guest.written + 1, answer }
}

function told(name: string, { by, read, saved }: Pulled, started: number, size: number) {
  say(`  ${name}: ${formatSize(read)} of ${formatSize(size)} read by ${by}, ${formatSize(saved)} saved, ${seconds(started)}`)
}

async function compare(disks: readonly DemoDisk[], found: readonly string[], models: readonly string[], count: number) {
  for (const [index, { name }] of disks.entries()) {
    const [sum, wanted] = await Promise.all([sha256(found[index]!), sha256(models[index]!)])
    if (sum !== wanted)
      throw new Error(`the backup of ${name} is not the instant after ${count} writes (${sum}, and not ${wanted})`)
    say(`  ${name}: byte for byte the instant after ${count} writes (sha256 ${sum.slice(0, 16)}...)`)
  }
}

async function sha256(file: string) {
  const hash = createHash('sha256')
  for await (const piece of createReadStream(file, { highWaterMark: 1 << 20 })) hash.update(piece as Buffer)
  return hash.digest('hex')
}

const copies = (disks: readonly DemoDisk[], suffix: string) =>
  Promise.all(
    disks.map(async ({ image }) => {
      const copy = image.replace(/raw$/, `${suffix}.raw`)
      // cp leaves holes where there are some; copyFile does not.
      if (find('cp')) await run('cp', ['--sparse=always', image, copy])
      else await copyFile(image, copy, constants.COPYFILE_FICLONE)
      return copy
    }),
  )

const configuration = (disks: readonly DemoDisk[]) => `state: ./state
control: { socket: ./control.sock }
nbd:
  - unix: ./nbd.sock
machines:
  db:
    disks:
${disks.map(({ name, image }) => `      ${name}: { image: ./${basename(image)}, format: raw }\n`).join('')}`

/** The disks, what the guest remembers of them, two backups and what is put together of them. */
async function checkSpace(folder: string, image: string | undefined) {
  await mkdir(folder, { recursive: true })
  const { bavail, bsize } = await statfs(folder)
  const size = image === undefined ? 400 * 2 ** 20 : (await stat(image)).blocks * 512 + 200 * 2 ** 20
  if (bavail * bsize < 5 * size)
    throw new Error(
      `${tmpdir()} has ${formatSize(bavail * bsize)} free, and the demo may need ${formatSize(5 * size)}; set TMPDIR to a folder with more`,
    )
}

try {
  await demo(images[0])
} catch (error) {
  console.error(`\nThe demo failed: ${error instanceof Error ? error.message : String(error)}`)
  process.exitCode = 1
}
