// Copies of a machine's disk while a guest writes: every combination of libvirt's flags, pivot and abort, errors of the copy, and what a
// restart finds. qemu-img judges.

import { systemError, watchFiles } from '../helpers/file-changes.ts'
import { access, copyFile, writeFile } from 'node:fs/promises'
import { basename } from 'node:path'
import t, { type Test } from 'tap'
import { diskDaemon, makeDisk, SIZE, Writer, type DiskDaemon } from '../helpers/disk-daemon.ts'
import { missing, qemuImg, scratchFolder } from '../helpers/qemu.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const skip = missing('qemu-img')
const DB = { machine: 'db', disk: 'root' }

interface Row {
  readonly source: 'raw' | 'qcow2' | 'chain'
  readonly shallow?: boolean
  readonly reuse?: boolean
  readonly format?: 'raw' | 'qcow2'
  /** What is at the destination before. */
  readonly there?: 'raw' | 'qcow2' | 'over-base'
  /** The format that comes of it, or the sentence that refuses it. */
  readonly becomes?: 'raw' | 'qcow2'
  readonly refused?: RegExp
}

const rows: readonly Row[] = [
  { source: 'raw', becomes: 'raw' },
  { source: 'qcow2', becomes: 'qcow2' },
  { source: 'chain', becomes: 'qcow2' },
  { source: 'raw', format: 'qcow2', becomes: 'qcow2' },
  { source: 'qcow2', format: 'raw', becomes: 'raw' },
  { source: 'chain', format: 'raw', becomes: 'raw' },
  { source: 'raw', shallow: true, becomes: 'raw' },
  { source: 'qcow2', shallow: true, becomes: 'qcow2' },
  { source: 'chain', shallow: true, becomes: 'qcow2' },
  { source: 'qcow2', shallow: true, format: 'raw', becomes: 'raw' },
  { source: 'chain', shallow: true, format: 'raw', refused: /shallow copy of disk 'db\/root' into a raw file is not possible/ },
  { source: 'raw', reuse: true, there: 'raw', becomes: 'raw' },
  { source: 'raw', reuse: true, format: 'qcow2', there: 'qcow2', becomes: 'qcow2' },
  { source: 'raw', reuse: true, there: 'qcow2', refused: /looks like a qcow or qcow2 image; say --format qcow2/ },
  { source: 'chain', reuse: true, there: 'qcow2', becomes: 'qcow2' },
  { source: 'chain', reuse: true, format: 'raw', there: 'raw', becomes: 'raw' },
  { source: 'chain', reuse: true, there: 'over-base', becomes: 'qcow2' },
  { source: 'chain', shallow: true, reuse: true, there: 'over-base', becomes: 'qcow2' },
  { source: 'chain', shallow: true, reuse: true, format: 'raw', there: 'raw', becomes: 'raw' },
  ...(['raw', 'qcow2', 'chain'] as const).flatMap((source): Row[] =>
    [false, true].map(shallow => ({ source, shallow, reuse: true, refused: /missing destination file for disk 'db\/root'/ })),
  ),
  { source: 'qcow2', there: 'qcow2', refused: /already exists and is not a block device/ },
  { source: 'chain', shallow: true, there: 'over-base', refused: /already exists and is not a block device/ },
]

const nameOf = ({ source, shallow, reuse, format, there, refused }: Row) =>
  [
    source,
    shallow && 'SHALLOW',
    reuse && 'REUSE_EXT',
    format && `to ${format}`,
    there && `onto ${there}`,
    refused ? 'is refused' : 'is the disk',
  ]
    .filter(Boolean)
    .join(' ')

/** What is at the destination: it holds what the images behind the disk do where it stands for them, and rubbish where it does not. */
async function prepare(folder: string, { source, shallow, there }: Row) {
  const copy = `${folder}/copy`
  if (there === 'over-base') {
    await copyFile(`${folder}/base.qcow2`, `${folder}/base-copy.qcow2`)
    await qemuImg('create', '-q', '-f', 'qcow2', '-b', 'base-copy.qcow2', '-F', 'qcow2', copy)
  } else if (there) {
    await writeFile(`${folder}/rubbish`, randomBytes(SIZE, 77))
    const from = shallow && source === 'chain' ? `${folder}/base.qcow2` : `${folder}/rubbish`
    await qemuImg('convert', '-f', from.endsWith('qcow2') ? 'qcow2' : 'raw', '-O', there, from, copy)
  }
  return copy
}

const isThere = (file: string) =>
  access(file).then(
    () => true,
    () => false,
  )

async function checkIsDisk(t: Test, daemon: DiskDaemon, copy: string, format: string, content: Buffer) {
  const { folder } = daemon
  await writeFile(`${folder}/wanted`, content)
  t.match(await qemuImg('compare', '-U', '-f', 'raw', '-F', format, `${folder}/wanted`, copy), 'identical')
  if (format === 'qcow2') t.match(await qemuImg('check', '-U', copy), 'No errors')
}

for (const row of rows) {
  t.test(nameOf(row), { skip }, async t => {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    const content = await makeDisk(folder, row.source)
    const copy = await prepare(folder, row)
    const { shallow, reuse, format, becomes } = row
    const args = { ...DB, file: copy, ...(shallow && { shallow }), ...(reuse && { reuse }), ...(format && { format }) }
    {
      const daemon = stack.use(await diskDaemon(folder))
      await using writer = new Writer(await daemon.nbd('db/root'), content)
      await writer.atLeast(5)
      if (row.refused) {
        const before = await isThere(copy)
        await t.rejects(daemon.execute('disk-copy', args), { message: row.refused })
        t.equal(await isThere(copy), before, 'nothing is left behind')
        t.same(await daemon.execute('query-disk-jobs'), [])
        return
      }
      t.match(await daemon.execute('disk-copy', args), { type: 'copy', over: false, target: copy })
      await daemon.ready()
      await writer.atLeast(5)
      t.match(await daemon.execute('disk-pivot', DB), { over: true, status: 'null' })
      const [{ image }] = await daemon.disks()
      t.equal(image, copy)
      await writer.atLeast(5)
      await writer.stop()
      await daemon.stop()
      await checkIsDisk(t, daemon, copy, becomes!, content)
      const { 'backing-filename': behind } = JSON.parse(await qemuImg('info', '--output=json', copy)) as Record<string, string>
      t.equal(
        behind && basename(behind),
        becomes === 'raw'
          ? undefined
          : row.there === 'over-base'
            ? 'base-copy.qcow2'
            : shallow && row.source === 'chain'
              ? 'base.qcow2'
              : undefined,
      )
    }
    const again = stack.use(await diskDaemon(folder))
    t.equal((await again.disks())[0].image, copy, 'a restart finds it there')
    t.ok((await (await again.nbd('db/root')).read(0, SIZE)).equals(content))
  })
}

t.test('a copy whose image cannot be closed well has failed, and the disk is free again', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  await makeDisk(folder, 'qcow2')
  const daemon = stack.use(await diskDaemon(folder))
  await daemon.execute('disk-copy', { ...DB, file: `${folder}/copy.qcow2` })
  await daemon.ready()
  let failed = 0
  {
    using _watching = watchFiles(folder, ({ what, path }) => {
      if (what !== 'truncate' || !path.endsWith('copy.qcow2')) return
      failed++
      throw systemError('ENOSPC', what)
    })
    await t.rejects(daemon.execute('disk-abort', DB), { message: /No space left on device/ })
  }
  t.ok(failed > 0, 'it has room set aside, which is given back')
  await daemon.execute('disk-copy', { ...DB, file: `${folder}/again.qcow2` })
  await daemon.ready()
  t.match(await daemon.execute('disk-pivot', DB), { over: true })
})
