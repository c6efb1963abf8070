// What other people's NBD clients find and do at our server.

import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { native } from '../../src/base/native.ts'
import { fileNode } from '../helpers/open-context.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { exportOf, serve } from '../helpers/served.ts'
import { missing, run } from '../helpers/tools.ts'

const MIB = 1 << 20

/** Data, a hole, data, and an end that is aligned to nothing. */
const image = () => {
  const bytes = randomBytes(8 * MIB + 1000, 1)
  bytes.fill(0, MIB, 3 * MIB)
  return bytes
}

t.test('nbdinfo lists an export, and nbdcopy copies it both ways', { skip: missing('nbdinfo', 'nbdcopy') }, async t => {
  await using stack = new AsyncDisposableStack()
  const bytes = image()
  const node = await fileNode(bytes, stack)
  const { uri, folder, lines } = await serve([exportOf(node, { description: 'a disk for tests' })], stack)
  const [listed] = JSON.parse(await run('nbdinfo', ['--json', '--list', uri()])).exports
  t.match(listed, {
    'export-name': 'disk',
    description: 'a disk for tests',
    'export-size': bytes.length,
    is_read_only: false,
    can_df: true,
    can_fast_zero: true,
    can_flush: true,
    can_fua: true,
    can_multi_conn: true,
    can_trim: true,
    can_zero: true,
    can_cache: true,
    contexts: ['base:allocation'],
  })

  const copy = join(folder, 'copy')
  await run('nbdcopy', [uri('disk'), copy])
  t.ok(bytes.equals(await readFile(copy)))

  const other = randomBytes(bytes.length, 2)
  await writeFile(copy, other)
  await run('nbdcopy', ['--flush', copy, uri('disk')])
  const back = Buffer.alloc(bytes.length)
  await node.read(0, back)
  t.ok(other.equals(back))
  t.same(lines, [])
})

t.test(
  'nbdinfo sees holes where the file has them',
  { skip: missing('nbdinfo') || (!native && 'needs native calls') },
  async t => {
    await using stack = new AsyncDisposableStack()
    const node = await fileNode(image(), stack)
    await node.zero({ offset: MIB, length: 2 * MIB }, { unmap: true })
    const { uri } = await serve([exportOf(node)], stack)
    const map = JSON.parse(await run('nbdinfo', ['--json', '--map', uri('disk')])) as {
      offset: number
      length: number
      type: number
    }[]
    t.match(map, [
      { offset: 0, length: MIB, type: 0 },
      { offset: MIB, length: 2 * MIB, type: 3 },
      { offset: 3 * MIB, length: 5 * MIB + 1000, type: 0 },
    ])
  },
)
